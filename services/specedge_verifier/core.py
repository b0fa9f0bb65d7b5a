"""The engine without threads, tensors or network: sessions in, verdicts out, one step at a time.

The model is behind `StepModel`, time behind the caller: a real engine runs this on its thread, a simulator in virtual
time. A step has two halves, `begin` and `finish`; between them the model may still be computing, and everything else
about the engine may be called:

Rule 1  What a step computes is fixed when it begins. A draft that arrives later joins its trie at once, also below
        nodes being verified, and is looked at in the next step.
Rule 2  A session closed during a step is told nothing more, and keeps its blocks until the step has ended.
Rule 3  What a step taught is learnt while the model computes the next one.
Rule 4  A step in which memory runs out has changed nothing, and a smaller one takes its place.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil, inf
from typing import TYPE_CHECKING, Protocol

from specedge.errors import CapacityExceeded, ProtocolError, SpecEdgeError
from specedge.node_store import IntArray
from specedge.penalties import TokenCounts
from specedge.stopping import TokenStops
from specedge.trie import DraftTrie
from specedge.wire.messages import DraftNodes, OpenSession, ServerInfo, SessionOpened, Verdict
from specedge_verifier.acceptance import Walk, walk
from specedge_verifier.forecast import Forecast, forecast
from specedge_verifier.local_drafts import LocalDrafts, add_nodes
from specedge_verifier.pending_tokens import KnownTokens, NoTokens, PendingTokens
from specedge_verifier.scheduler import Schedule, Scheduler
from specedge_verifier.session import Session
from specedge_verifier.session_blocks import SessionBlocks
from specedge_verifier.step_logprobs import StepLogprobs, tell_logprobs
from specedge_verifier.step_report import StepReport, report_of
from specedge_verifier.tenant_account import TenantAccount

if TYPE_CHECKING:
    from specedge.grammar.state import GrammarState

logger = logging.getLogger(__name__)

_MAX_LEAD = 64
PICTURE_EVERY_S = 0.05
"""How old the picture may be from which newcomers are judged: with many sessions it costs some tenths of a ms."""

_NEARLY = 0.9  # of a step's expected time

Event = tuple[int, SessionOpened | Verdict | SpecEdgeError]
"""A session's handle and what it is to be told."""


class StepModel(Protocol):
    """What a step needs of the target model. Want of memory is MemoryError, and what was begun with it is void."""

    def launch(self, schedule: Schedule) -> PendingTokens:
        """Begin to compute the planned rows; the sessions' slots may be read until the tokens are there.

        Returns:
            What is also `ScoredTokens` where a session of the step wants log-probabilities.
        """

    def move_kv(self, source_slots: Sequence[int], target_slots: Sequence[int]) -> None:
        """Copy accepted tokens' keys and values to the slots where committed tokens are looked for."""


@dataclass(slots=True)
class StepResult:
    """Events to deliver; without a report nothing ran and nothing will for `wait_s` unless there is news."""

    events: list[Event]
    report: StepReport | None
    wait_s: float = 0.0


@dataclass(slots=True)
class StepInFlight:
    """A step that has begun; without planned sessions there is nothing to compute.

    Attributes:
        due_s: by the core's clock, when the tokens should nearly be there.
        closed: sessions closed since it began.
    """

    schedule: Schedule
    pending: PendingTokens
    draft_s: float
    started_s: float
    scheduled_s: float
    launched_s: float
    learnt_s: float
    due_s: float
    closed: list[Session] = field(default_factory=list)


class EngineCore:
    """Sessions, scheduler and model.

    Args:
        scheduler: owns the running set and the block pool.
        model: the target.
        info: what the verifier serves; limits and EOS ids are taken from here.
        clock: seconds, monotonic.
        drafts: drafts beside the target for every session; without, sessions are drafted for by their edges.

    Attributes:
        everyone: account of sessions that are no tenant's.
        forecast: the picture of the last decision; may be read by any thread.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        model: StepModel,
        info: ServerInfo,
        clock: Callable[[], float],
        drafts: LocalDrafts | None = None,
    ) -> None:
        self.scheduler = scheduler
        self._model = model
        self._info = info
        self._clock = clock
        self._drafts = drafts
        self._sessions: dict[int, Session] = {}
        self._opened: set[int] = set()
        self._begun: set[int] = set()  # sessions that have been in a step
        self._in_flight: StepInFlight | None = None
        self._num_opened = 0
        self.everyone = TenantAccount()
        self.forecast: Forecast = forecast(scheduler, 0, clock())

    @property
    def num_sessions(self) -> int:
        return len(self._sessions)

    def open(
        self,
        handle: int,
        message: OpenSession,
        grammar: "GrammarState | None" = None,
        account: TenantAccount | None = None,
    ) -> None:
        """Queue a validated session; its grammar stands at the committed tokens, and `account` is its tenant's."""
        params = message.sampling
        account = self.everyone if account is None else account
        drafter_id = message.drafter_id if self._drafts is None else self._drafts.drafter_id
        if self._drafts is None and drafter_id and account is not self.everyone:
            drafter_id = account.drafter_id(drafter_id)
        committed = [*message.prompt_ids, *message.committed_ids]
        counts = None
        if params.has_penalties:
            counts = TokenCounts(message.prompt_ids)
            counts.append(message.committed_ids)
        session = Session(
            handle=handle,
            params=params,
            eos_ids=self._info.eos_ids,
            trie=DraftTrie(committed, max_live_nodes=self._info.max_live_nodes, store=self.scheduler.store),
            stops=TokenStops(self._info.eos_ids, params),
            num_prompt=len(message.prompt_ids),
            blocks=SessionBlocks(self.scheduler.pool, account.salt + message.cache_salt, account),
            arrived_s=self._clock(),
            priority=message.priority,
            drafter_id=drafter_id,
            speculative=self._drafts is not None or (message.system == "specedge" and bool(drafter_id)),
            counts=counts,
            account=account,
            grammar=grammar,
        )
        account.usage.num_sessions += 1
        account.usage.prompt += len(committed)
        session.gap.late_s = self.scheduler.calibrations.of(drafter_id).late_s
        self._sessions[handle] = session
        self._num_opened += 1
        self.scheduler.add(session)

    def draft(self, handle: int, nodes: DraftNodes) -> list[Event]:
        """Take in an edge's draft nodes; a session that has ended, or takes none, ignores them."""
        session = self._sessions.get(handle)
        if session is None or not session.speculative or self._drafts is not None:
            return []
        try:
            add_nodes(session, nodes)
        except ProtocolError as error:
            self.close(handle)
            return [(handle, error)]
        session.account.usage.drafted += len(nodes.token_ids)
        if session.trie.num_live:
            now_s = self._clock()
            session.gap.drafted(now_s)
            self.scheduler.calibrations.of(session.drafter_id).late_s = session.gap.late_s
            if session.ready_since_s is None:
                session.ready_since_s = now_s
        return []

    def close(self, handle: int) -> None:
        """End a session and free its blocks (Rule 2); one that has ended already is left alone."""
        session = self._sessions.pop(handle, None)
        self._opened.discard(handle)
        self._begun.discard(handle)
        if session is not None:
            if self._in_flight is None:
                self.scheduler.remove(session)
            else:
                self._in_flight.closed.append(session)
        if self._drafts is not None:
            self._drafts.close(handle)

    def pause(self, handle: int, is_paused: bool) -> None:
        """Leave a session out of steps while its reader is too slow."""
        if session := self._sessions.get(handle):
            session.is_paused = is_paused

    def step(self) -> StepResult:
        """One step of all sessions that have something to compute."""
        return self.finish(self.begin())

    def begin(self) -> StepInFlight:
        """Decide what the next step computes, and have the model begin with it."""
        assert self._in_flight is None, "a step is in flight"
        draft_s = self._drafts.grow(self.scheduler.running, self.scheduler.step_time) if self._drafts else 0.0
        started_s = self._clock()
        schedule = self.scheduler.schedule(started_s)
        scheduled_s = self._clock()
        pending = self._launch(schedule)
        launched_s = self._clock()
        self.scheduler.learn()
        if not schedule.planned or started_s - self.forecast.taken_s >= PICTURE_EVERY_S:
            self.forecast = forecast(self.scheduler, self._num_opened, started_s, schedule.planned, self.forecast)
        due_s = started_s + _NEARLY * self.scheduler.step_time.seconds(schedule.num_rows)
        step = StepInFlight(schedule, pending, draft_s, started_s, scheduled_s, launched_s, self._clock(), due_s)
        self._in_flight = step if schedule.planned else None
        return step

    def finish(self, step: StepInFlight) -> StepResult:
        """Wait for the model's tokens, accept drafts and book the step."""
        schedule = step.schedule
        if not schedule.planned:
            return StepResult([], None, schedule.wait_s)
        try:
            sampled = step.pending.tokens()
            sampled_s = self._clock()
            walks = accept(schedule, sampled)
            logprobs = tell_logprobs(schedule, walks, step.pending)
            num_moved = self._keep_accepted(schedule, walks)
        except MemoryError as error:
            return self._retreat(step, str(error))
        self._in_flight = None
        step_s = sampled_s - step.started_s
        events = self._verdicts(schedule, walks, step_s, logprobs)
        self.scheduler.settle(schedule, walks, sampled_s, step_s)
        self._pass_on(events)
        for session in step.closed:
            self.scheduler.remove(session)
        report = report_of(schedule, walks, num_moved)
        self._count_sessions(schedule, report)
        report.draft_s, report.schedule_s = step.draft_s, step.scheduled_s - step.started_s
        report.forward_s, report.sample_s = step.launched_s - step.scheduled_s, sampled_s - step.learnt_s
        report.settle_s = self._clock() - sampled_s + step.learnt_s - step.launched_s
        return StepResult(events, report)

    def _launch(self, schedule: Schedule) -> PendingTokens:
        if not schedule.planned:
            return KnownTokens(())
        try:
            return self._model.launch(schedule)
        except MemoryError as error:
            return NoTokens(str(error))

    def _retreat(self, step: StepInFlight, shortage: str) -> StepResult:
        """Give up a step for want of memory (Rule 4); where nothing smaller is left, its session."""
        self._in_flight = None
        events: list[Event] = []
        num_rows = step.schedule.num_rows
        if self.scheduler.retreat(step.schedule):
            logger.warning(
                "no memory for a step of %d rows, trying %d: %s", num_rows, self.scheduler.cap.rows, shortage
            )
        else:
            logger.error("no memory for a step of a single row, its session ends: %s", shortage)
            error = CapacityExceeded("the verifier has too little memory to go on with this session", retry_after_s=5.0)
            events = [(item.session.handle, error) for item in step.schedule.planned]
        self._pass_on(events)
        for session in step.closed:
            self.scheduler.remove(session)
        return StepResult(events, None)

    def _count_sessions(self, schedule: Schedule, report: StepReport) -> None:
        """Which sessions began with this step, and what the others can go on with."""
        for item in schedule.planned:
            handle = item.session.handle
            if handle not in self._begun:
                report.admission_s.append(item.queue_s)
            if handle in self._sessions:
                self._begun.add(handle)
                if item.samples:
                    has_nodes = item.session.trie.num_live > 0
                    report.num_drafted_next += has_nodes
                    report.num_bare_next += not has_nodes

    def _keep_accepted(self, schedule: Schedule, walks: list[Walk | None]) -> int:
        """Close the gaps that rejected nodes leave between accepted tokens; nothing moves while the best path wins."""
        source: list[int] = []
        target: list[int] = []
        for item, path in zip(schedule.planned, walks, strict=True):
            if path is None or not (rows := path.rows) or rows[-1] == len(rows):
                continue
            root = item.start + item.num_chunk - 1
            slots = item.session.blocks.slots(root, root + 1 + item.num_nodes)
            for index, row in enumerate(rows, start=1):
                if row != index:
                    source.append(int(slots[row]))
                    target.append(int(slots[index]))
        if source:
            self._model.move_kv(source, target)
        return len(source)

    def _verdicts(
        self, schedule: Schedule, walks: list[Walk | None], step_s: float, logprobs: StepLogprobs
    ) -> list[Event]:
        events: list[Event] = []
        step_us = int(1e6 * step_s)
        for item, path in zip(schedule.planned, walks, strict=True):
            session = item.session
            handle = session.handle
            if handle not in self._sessions:
                continue
            if handle not in self._opened and session.is_prompt_scored:
                self._opened.add(handle)
                opened = SessionOpened(
                    session.num_cached,
                    self._info.max_live_nodes,
                    self._info.max_nodes_per_message,
                    tuple(session.prompt_logprobs),
                )
                events.append((handle, opened))
            if path is None:
                continue
            first_position = len(session.tokens)
            end = session.end_of(path.tokens)
            if end.finish_reason is not None:
                path.tokens = end.tokens
                del path.rows[len(end.tokens) :]
            if end.tokens:
                verdict = Verdict(
                    first_position,
                    tuple(end.tokens),
                    end.finish_reason or "",
                    int(1e6 * item.queue_s),
                    step_us,
                    item.num_nodes,
                    min(len(path.rows), len(end.tokens)),
                    lead_tokens(session, len(end.tokens), step_s),
                    logprobs.get(handle, ())[: len(end.tokens)],
                )
                events.append((handle, verdict))
            if end.error is not None:
                events.append((handle, end.error))
        return events

    def _pass_on(self, events: list[Event]) -> None:
        """Tell the local drafts what was committed, and end the sessions that are finished."""
        for handle, event in events:
            if isinstance(event, SpecEdgeError):
                self.close(handle)
            if not isinstance(event, Verdict):
                continue
            if self._drafts is not None:
                self._drafts.verdict(handle, event.token_ids, event.num_nodes_verified, event.num_accepted)
            if event.finish_reason:
                self.close(handle)


def accept(schedule: Schedule, sampled: Sequence[int] | IntArray) -> list[Walk | None]:
    """Walk every planned session's tree along the target's tokens.

    Args:
        schedule: the step.
        sampled: the target's tokens, in the order of `StepModel.sample`.
    """
    walks = iter(walk(schedule.trees, sampled) if len(sampled) else ())
    return [next(walks) if item.samples else None for item in schedule.planned]


def lead_tokens(session: Session, num_tokens: int, step_s: float) -> int:
    """How far ahead of the frontier drafting still pays: what is committed until the next draft can arrive."""
    late_s = session.gap.late_s
    if late_s == inf or step_s <= 0:
        return 0
    lead = ceil(num_tokens * (1 + late_s / step_s))
    return lead if lead < _MAX_LEAD else _MAX_LEAD
