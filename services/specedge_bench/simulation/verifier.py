"""The verifier's process in virtual time: the engine thread's loop around the real `EngineCore`."""

from collections.abc import Callable
from functools import partial
from math import inf

from specedge.drafting.draft_stats import DrafterStats
from specedge.errors import SpecEdgeError
from specedge.wire.messages import DraftNodes, OpenSession, SessionOpened, Verdict
from specedge_bench.simulation.events import DeviceClock, EventQueue
from specedge_bench.simulation.models import LocalDraft
from specedge_bench.simulation.totals import VerifierTotals
from specedge_verifier.core import EngineCore, Event
from specedge_verifier.queue_bounds import QueueBounds, QueueLimits
from specedge_verifier.session_quota import SessionQuota
from specedge_verifier.step_report import StepReport

_SHORTEST_WAIT_S = 1e-5  # no real thread looks again sooner, and virtual time must move on
OnVerdict = Callable[[Verdict], None]


class SimulatedVerifier:
    """One verifier.

    Args:
        core: sessions, scheduler, modelled target.
        clock: of its device.
        local_draft: the draft model `core` uses between its steps; None where edges draft or nobody does.
        draft_stats: of the drafting with it.
        queue: bounds for new sessions; None takes everyone.
    """

    def __init__(
        self,
        events: EventQueue,
        core: EngineCore,
        clock: DeviceClock,
        local_draft: LocalDraft | None = None,
        draft_stats: DrafterStats | None = None,
        queue: QueueLimits | None = None,
    ) -> None:
        self.core = core
        self.clock = clock
        self.local_draft = local_draft
        self.draft_stats = draft_stats
        self.totals = VerifierTotals()
        self.steps: list[tuple[float, StepReport]] = []  # when each began, and what it did
        self._bounds = None if queue is None else QueueBounds(queue, lambda: core.forecast, clock)
        self._quota = None if self._bounds is None else SessionQuota(self._bounds, core.scheduler.pool)
        self._events = events
        self._listeners: dict[int, OnVerdict] = {}
        self._commands: list[Callable[[], list[Event] | None]] = []
        self._is_awake = False  # in a step, or about to look at the commands
        self._num_sleeps = 0

    def admit(self, message: OpenSession) -> float:
        """Returns the TTFT predicted for a session, 0 without bounds; raises CapacityExceeded."""
        if self._bounds is None or self._quota is None:
            return 0.0
        self._quota.admit(message, self.core.everyone)
        return self._bounds.predicted_ttft_s(message, self.core.everyone)

    def open(self, handle: int, message: OpenSession, on_verdict: OnVerdict) -> None:
        """A session begins."""
        if self._quota is not None:
            self._quota.opened(message, self.core.everyone)
        self._listeners[handle] = on_verdict
        self._post(partial(self.core.open, handle, message))

    def draft(self, handle: int, nodes: DraftNodes) -> None:
        """Draft nodes have arrived."""
        self._post(partial(self.core.draft, handle, nodes))

    def _post(self, command: Callable[[], list[Event] | None]) -> None:
        self._commands.append(command)
        if not self._is_awake:
            self._is_awake = True
            self._events.after(0.0, self._iterate)  # what arrives at the same moment is seen together

    def _iterate(self) -> None:
        commands, self._commands = self._commands, []
        for command in commands:
            for _, event in command() or ():
                raise AssertionError(f"the engine refused a simulated message: {event}")
        result = self.core.step()
        step_s = self.clock.take_step()
        if result.report is not None or step_s:
            if result.report is not None:
                self.totals.count(result.report)
                self.steps.append((self._events.now_s, result.report))
            self._events.after(step_s, partial(self._finish, result.events))
            return
        self._is_awake = False
        self._num_sleeps += 1
        if result.wait_s != inf:
            self._events.after(max(result.wait_s, _SHORTEST_WAIT_S), partial(self._wake, self._num_sleeps))

    def _wake(self, num_sleeps: int) -> None:
        if not self._is_awake and num_sleeps == self._num_sleeps:
            self._is_awake = True
            self._iterate()

    def _finish(self, events: list[Event]) -> None:
        for handle, event in events:
            if isinstance(event, Verdict):
                self._listeners[handle](event)
                if event.finish_reason:
                    del self._listeners[handle]
                    if self._quota is not None:
                        self._quota.closed(self.core.everyone)
            elif isinstance(event, SpecEdgeError):
                raise event
            else:
                assert isinstance(event, SessionOpened)
        self._iterate()
