"""The edge agent's process in virtual time: the drafter thread's loop around the real `DraftCore`."""

from collections.abc import Callable, Sequence
from functools import partial

from specedge.drafting.core import DraftCore
from specedge.drafting.draft_session import DraftRequest
from specedge.drafting.draft_step import DraftStep
from specedge.drafting.growth import Candidates
from specedge.wire.draft_codec import SCORE_STEPS
from specedge.wire.messages import DraftNodes
from specedge_bench.curves import StepCurve
from specedge_bench.simulation.events import Action, EventQueue
from specedge_bench.simulation.models import ModelledDraft, draft_seconds

OnNodes = Callable[[DraftNodes], None]


class SimulatedEdge:
    """One edge's drafter.

    Args:
        core: drafts for all sessions of this edge.
        model: the modelled draft `core` uses.
        curve: of the draft on the edge's device.
        host_s: what a draft step costs beside its forward.
    """

    def __init__(
        self, events: EventQueue, core: DraftCore[int], model: ModelledDraft, curve: StepCurve, *, host_s: float
    ) -> None:
        self.core = core
        self._busy_s = 0.0
        self._busy_until_s = 0.0
        self._events = events
        self._model = model
        self._curve = curve
        self._host_s = host_s
        self._on_nodes: dict[int, OnNodes] = {}
        self._inbox: list[Action] = []
        self._is_awake = False

    def open(self, handle: int, request: DraftRequest, on_nodes: OnNodes) -> None:
        """Starts drafting for a session."""
        self._on_nodes[handle] = on_nodes
        self._post(partial(self.core.open, handle, request))

    def verdict(self, handle: int, token_ids: Sequence[int]) -> None:
        """Tokens were committed."""
        self._post(partial(self.core.verdict, handle, token_ids))

    def close(self, handle: int) -> None:
        """Ends a session."""
        del self._on_nodes[handle]
        self._post(partial(self.core.close, handle))

    def busy_before_s(self, end_s: float) -> float:
        """How long draft steps have taken until then; the last one may go on."""
        return self._busy_s - max(0.0, self._busy_until_s - end_s)

    def _post(self, command: Action) -> None:
        self._inbox.append(command)
        if not self._is_awake:
            self._is_awake = True
            self._events.after(0.0, self._iterate)

    def _iterate(self) -> None:
        self._run_commands()
        self._hand_over()
        step = self.core.schedule()
        if step is None:
            self._is_awake = False
            return
        step_s = draft_seconds(self._curve, step) + self._host_s
        self._busy_s += step_s
        self._busy_until_s = self._events.now_s + step_s
        self._events.after(step_s, partial(self._finish, step, self._model.children(step)))

    def _finish(self, step: DraftStep, children: list[Candidates]) -> None:
        self._run_commands()
        self.core.settle(step, children)
        self._hand_over()
        self._iterate()

    def _run_commands(self) -> None:
        commands, self._inbox = self._inbox, []
        for command in commands:
            command()

    def _hand_over(self) -> None:
        for handle, _, nodes in self.core.take_messages():
            if on_nodes := self._on_nodes.get(handle):
                on_nodes(as_sent(nodes))


def as_sent(nodes: DraftNodes) -> DraftNodes:
    """The nodes as they arrive: a score is one byte on the wire."""
    scores = [round(max(-255.0, SCORE_STEPS * score)) / SCORE_STEPS for score in nodes.scores]
    return DraftNodes(nodes.token_ids, nodes.parents, scores)
