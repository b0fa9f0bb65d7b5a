"""The two models as arithmetic: what they say comes from an acceptance trace, how long they take from a curve.

Every token of the target's answers is TRUE_TOKEN, and a draft's other choices have other numbers. A draft node below a
wrong one never gets TRUE_TOKEN, so a node's own token tells whether its whole path is the target's.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from specedge.drafting.draft_session import SessionDrafting
from specedge.drafting.draft_step import DraftStep
from specedge.drafting.draft_tree import DraftTree
from specedge.drafting.growth import Candidates
from specedge_bench.curves import StepCurve
from specedge_bench.simulation.acceptance_trace import NOT_AMONG, AcceptanceTrace
from specedge_bench.simulation.events import DeviceClock
from specedge_verifier.pending_tokens import KnownTokens
from specedge_verifier.scheduler import Schedule

TRUE_TOKEN = 0
FIRST_PROMPT_TOKEN = 16
"""Prompts and wrong choices use other numbers than the target's answers."""


class ModelledTarget:
    """Implements `specedge_verifier.core.StepModel`: takes its time, and says TRUE_TOKEN.

    Args:
        curve: of the target on the verifier's device.
        host_s: what a step costs beside its forward.
        session_s: what each of its sessions costs the processor, which may be busy while the device computes.
    """

    def __init__(self, curve: StepCurve, clock: DeviceClock, host_s: float, session_s: float = 0.0) -> None:
        self._curve = curve
        self._clock = clock
        self._host_s = host_s
        self._session_s = session_s

    def launch(self, schedule: Schedule) -> KnownTokens:
        """Takes the step's time; the tokens below wrong nodes are not looked at."""
        planned = schedule.planned
        kv_tokens = sum(item.start + item.num_rows for item in planned)
        device_s = self._curve.seconds(schedule.num_rows, kv_tokens, len(planned)) + self._host_s
        self._clock.work(max(device_s, len(planned) * self._session_s))
        return KnownTokens([TRUE_TOKEN] * schedule.trees.num_rows)

    def move_kv(self, source_slots: Sequence[int], target_slots: Sequence[int]) -> None:
        """Nothing is there to be copied."""


class TraceReplay:
    """An acceptance trace as children of draft rows, the same objects again and again.

    Args:
        trace: what to replay.
    """

    def __init__(self, trace: AcceptanceTrace) -> None:
        self.num_positions = len(trace.ranks)
        self._trace = trace
        self._right: dict[int, Candidates] = {}
        self._wrong: dict[int, Candidates] = {}

    def on_path(self, index: int) -> Candidates:
        """Children of a row of the target's own text."""
        index %= self.num_positions
        found = self._right.get(index)
        if found is None:
            claims, rank = self._trace.log_probs[index], self._trace.ranks[index]
            tokens = _wrong_tokens(len(claims))
            if rank != NOT_AMONG:
                tokens[rank] = TRUE_TOKEN
            found = self._right[index] = _candidates(tokens, claims)
        return found

    def off_path(self, index: int) -> Candidates:
        """Children of a row of other text: none is right."""
        index %= self.num_positions
        found = self._wrong.get(index)
        if found is None:
            claims = self._trace.log_probs[index]
            found = self._wrong[index] = _candidates(_wrong_tokens(len(claims)), claims)
        return found


def _wrong_tokens(num_tokens: int) -> list[int]:
    return list(range(TRUE_TOKEN + 1, TRUE_TOKEN + 1 + num_tokens))


def _candidates(token_ids: list[int], claims: Sequence[float]) -> Candidates:
    scores = np.array(claims)
    return Candidates(token_ids, list(claims), scores, np.zeros(1), is_greedy=True)


class ModelledDraft:
    """Implements `specedge.drafting.core.DraftModel`: children from a trace.

    A session's seed is where in the trace its text begins.
    """

    def __init__(self, replay: TraceReplay) -> None:
        self._replay = replay

    def children(self, step: DraftStep) -> list[Candidates]:
        """The wanted rows' children."""
        found: list[Candidates] = []
        for session, tree, rows in step.parts:
            if not rows.wanted:
                continue
            offset = session.request.sampling.seed
            is_true = _is_true_text(session, tree)
            for row, reference in zip(rows.wanted, rows.references, strict=True):
                index = offset + rows.positions[row] + 1
                if is_true and (reference < 0 or rows.token_ids[row] == TRUE_TOKEN):
                    found.append(self._replay.on_path(index))
                else:  # any other position's claims, the same whenever this row is asked for
                    found.append(self._replay.off_path(offset + 7919 * (index + 31 * (reference & 1023))))
        return found

    def observe(self, evidence: Iterable[tuple[Candidates, int]]) -> None:
        """A trace's claims are final."""


def _is_true_text(session: SessionDrafting, tree: DraftTree) -> bool:
    """Whether the tree supposes only the target's tokens after the committed ones."""
    if tree is session.tree:
        return True
    return not any(token != TRUE_TOKEN for token in tree.trie.committed[len(session.committed) :])


def draft_seconds(curve: StepCurve, step: DraftStep) -> float:
    """How long a draft step's forward takes."""
    kv_tokens = sum(rows.num_context for _, _, rows in step.parts)
    return curve.seconds(step.num_rows, kv_tokens, len(step.parts))


class LocalDraft(ModelledDraft):
    """A draft model on the verifier's own device: it takes that device's time.

    Args:
        replay: what it says.
        curve: of the draft on the verifier's device.
        clock: of that device.
        host_s: what a draft step costs beside its forward.
    """

    def __init__(self, replay: TraceReplay, curve: StepCurve, clock: DeviceClock, host_s: float) -> None:
        super().__init__(replay)
        self.busy_s = 0.0
        self._curve = curve
        self._clock = clock
        self._host_s = host_s

    def children(self, step: DraftStep) -> list[Candidates]:
        """The wanted rows' children, and the time they take."""
        step_s = draft_seconds(self._curve, step) + self._host_s
        self._clock.work(step_s)
        self.busy_s += step_s
        return super().children(step)
