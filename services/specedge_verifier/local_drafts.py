"""Drafting beside the target (`--system server-only`): draft steps for all sessions, between the engine's own steps.

One thread and one device serve both models, so nothing is in flight while a step runs, and nobody ever waits for a
draft: the depth of the drafts is a decision made before every step (`draft_depth`).
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence

from specedge.drafting.core import DraftCore, DraftModel
from specedge.drafting.draft_session import DraftingSettings, DraftRequest
from specedge.drafting.draft_stats import StepReport
from specedge.wire.messages import DraftNodes
from specedge_verifier.draft_depth import DraftDepth
from specedge_verifier.session import Session
from specedge_verifier.step_time import StepTime

logger = logging.getLogger(__name__)


class LocalDrafts:
    """A draft model that belongs to the engine.

    Args:
        model: the draft model.
        settings: growth of the trees; the mode is "streamed".
        num_slots: KV slots of the draft model.
        drafter_id: names the draft model, as an edge would.
        clock: seconds, monotonic; the engine's.
        on_step: told about every draft step.
    """

    def __init__(
        self,
        model: DraftModel,
        settings: DraftingSettings,
        num_slots: int,
        drafter_id: str,
        clock: Callable[[], float],
        on_step: Callable[[StepReport], None] | None = None,
    ) -> None:
        self.drafter_id = drafter_id
        self.core: DraftCore[int] = DraftCore(model, settings, num_slots)
        self.depth = DraftDepth(settings.growth.max_beam_len)
        self._model = model
        self._clock = clock
        self._on_step = on_step
        self._sessions: dict[int, Session] = {}
        self._depths: Counter[int] = Counter()  # by handle: draft steps that grew its tree since the engine's last step

    def grow(self, running: Sequence[Session], step_time: StepTime) -> float:
        """Run the draft steps that pay before the next step; nodes go straight to the sessions' tries.

        Returns:
            Seconds spent.
        """
        started_s = self._clock()
        decoding = [session for session in running if session.num_uncomputed == 1 and session.is_drafted]
        for session in decoding:
            if session.handle not in self._sessions:
                self._open(session)
        handles = {session.handle for session in decoding}
        for handle in self._sessions:
            self.core.pause(handle, handle not in handles)
        self._depths.clear()
        self._hand_over()  # what was looked up needs no draft step
        num_grown = 0
        num_steps = self.depth.decide(len(decoding), step_time)
        while num_grown < num_steps and (step := self.core.schedule()) is not None:
            step_started_s = self._clock()
            try:
                children = self._model.children(step)
            except MemoryError as error:
                self.core.abandon(step)
                logger.warning("no memory for a draft step of %d rows: %s", step.num_rows, error)
                break
            computed_s = self._clock()
            self.core.settle(step, children)
            self._hand_over()
            settled_s = self._clock()
            self.depth.drafted(settled_s - step_started_s)
            report = StepReport(
                0.0, computed_s - step_started_s, settled_s - computed_s, step.num_rows, len(step.parts)
            )
            self.core.stats.step(report)
            if self._on_step is not None:
                self._on_step(report)
            grown = [int(part.request.session_id) for part, _, rows in step.parts if rows.wanted]
            self._depths.update(grown)
            num_grown += bool(grown)  # else the step only caught up with a long text
        now_s = self._clock()
        for session in decoding:
            if session.ready_since_s is None:
                session.ready_since_s = now_s
        return now_s - started_s

    def verdict(self, handle: int, token_ids: Sequence[int], num_nodes: int, num_accepted: int) -> None:
        """The engine has committed tokens."""
        if handle not in self._sessions:
            return
        lookup = self.core.stats.lookup
        num_found, num_confirmed = self.core.num_looked_up(handle), lookup.confirmed.total()
        self.core.verdict(handle, token_ids)
        # A session that was still catching up when others grew has a shallower tree than they have.
        if num_nodes and self._depths[handle]:
            num_found_accepted = lookup.confirmed.total() - num_confirmed
            # Looked-up nodes would have been there without a draft step: they tell nothing about what steps bring.
            self.depth.verified(
                self._depths[handle], max(0, num_nodes - num_found), max(0, num_accepted - num_found_accepted)
            )

    def close(self, handle: int) -> None:
        """A session has ended; one that was never drafted for is left alone."""
        if self._sessions.pop(handle, None) is not None:
            self.core.close(handle)

    def _open(self, session: Session) -> None:
        request = DraftRequest(
            session_id=str(session.handle),
            committed=tuple(session.tokens),
            sampling=session.params,
            eos_ids=session.eos_ids,
            max_live_nodes=session.trie.max_live_nodes,
            prompt_len=session.num_prompt,
        )
        self._sessions[session.handle] = session
        self.core.open(session.handle, request)
        if session.grammar is not None:
            self.core.bind(session.handle, session.grammar.fork(), session.num_generated)

    def _hand_over(self) -> None:
        for handle, _, nodes in self.core.take_messages():
            add_nodes(self._sessions[handle], nodes)


def add_nodes(session: Session, nodes: DraftNodes) -> None:
    """Put draft nodes into a session's trie; raises ProtocolError for what no drafter of ours sends.

    Nodes carry the log-probability of their own step, so that a late node's path counts from today's frontier.
    """
    session.trie.extend(nodes.parents, nodes.token_ids, nodes.scores)
    session.trie.trim()
