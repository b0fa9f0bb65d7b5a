"""The engine thread: commands in from the event loop, events out to it, `EngineCore` in between.

One bridge each way and no lock below it: commands go through a thread-safe deque that the thread empties before every
step and while the device computes one; the events of a step reach the loop in one call.
"""

import asyncio
import logging
import threading
import time
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Protocol

from specedge.background import call_on_loop
from specedge.errors import (
    EngineDead,
    InvalidRequest,
    ProtocolError,
    SpecEdgeError,
    VerifierDraining,
)
from specedge.watchdog import Heartbeat
from specedge.wire.messages import DraftNodes, OpenSession, ServerInfo, SessionOpened, Verdict, check_token_ids
from specedge_verifier.bridge import SessionSink
from specedge_verifier.core import EngineCore, Event, StepInFlight
from specedge_verifier.queue_bounds import QueueBounds, QueueLimits
from specedge_verifier.session_quota import SessionQuota
from specedge_verifier.step_report import StepReport
from specedge_verifier.tenant_account import TenantAccount

if TYPE_CHECKING:
    from specedge.grammar.state import GrammarState

logger = logging.getLogger(__name__)

_Command = Callable[[], list[Event] | None]

_LOOK_S = 1e-3
"""How often a step in flight is looked at; one that is over sooner than expected is noticed so much later at most."""

MAX_PROMPT_LOGPROBS = 2**19
"""Log-probabilities of one prompt, those of the best tokens included: 4 MiB on the wire."""

MAX_QUEUED_DRAFTS = 256
"""Draft messages of one session that may wait for the engine thread; an edge that keeps to max_budget sends fewer."""


class EngineObserver(Protocol):
    """Is told what the engine did; called on the engine thread, must return at once."""

    def step(self, report: StepReport) -> None:
        """A step has finished."""


class EngineThread:
    """Implements `specedge_verifier.bridge.Engine` on a thread of its own.

    Args:
        core: sessions, scheduler, model; used by the engine thread only.
        info: what is served; its limits are checked at `open`.
        limits: of the queue; what exceeds them is refused.
        loop: where sinks are called.
        observer: metrics.

    Attributes:
        heartbeat: beats with every step.
    """

    def __init__(
        self,
        core: EngineCore,
        info: ServerInfo,
        limits: QueueLimits,
        loop: AbstractEventLoop,
        observer: EngineObserver,
    ) -> None:
        self._core = core
        self._info = info
        bounds = QueueBounds(limits, lambda: core.forecast, monotonic_s)
        self._quota = SessionQuota(bounds, core.scheduler.pool)
        self._loop = loop
        self._observer = observer
        self._sinks: dict[int, SessionSink] = {}  # changed on the loop thread only
        self._accounts: dict[int, TenantAccount] = {}
        self._drafts: dict[int, deque[DraftNodes]] = {}  # not yet taken by the engine thread
        self._commands: deque[_Command] = deque()
        self._report: StepReport | None = None  # of the last step, not yet observed
        self._news = threading.Event()
        self.heartbeat = Heartbeat()
        self._failed = asyncio.Event()
        self._next_handle = 0
        self._is_draining = False
        self._is_stopping = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the thread after its present step and wait for it, unless it has failed."""
        self._is_stopping = True
        self._news.set()
        if self._error is None:
            self._thread.join(timeout_s)

    def fail(self, error: BaseException) -> None:
        """Give the thread up, on the event loop: its sessions end as retryable, and it does no further step."""
        self._is_stopping = True
        if self._error is None:
            self._error = error
        self._fail_all()

    async def failure(self) -> EngineDead:
        """Returns once the thread has died or was given up, with the reason; its sessions have been told."""
        await self._failed.wait()
        return EngineDead(f"the engine has stopped: {self._error}")

    @property
    def is_healthy(self) -> bool:
        return self._error is None and self._thread.is_alive()

    @property
    def num_sessions(self) -> int:
        return len(self._sinks)

    def info(self) -> ServerInfo:
        return self._info

    def drain(self) -> None:
        self._is_draining = True

    def open(
        self,
        message: OpenSession,
        sink: SessionSink,
        grammar: "GrammarState | None" = None,
        account: TenantAccount | None = None,
    ) -> int:
        """See `Engine.open`."""
        account = self._core.everyone if account is None else account
        if self._error is not None:
            raise EngineDead(f"the engine has stopped: {self._error}")
        if self._is_draining:
            raise VerifierDraining("the verifier is shutting down", retry_after_s=1.0)
        check_session(message, self._info)
        self._quota.admit(message, account)
        handle = self._next_handle
        self._next_handle += 1
        self._sinks[handle], self._drafts[handle], self._accounts[handle] = sink, deque(), account
        self._quota.opened(message, account)
        sink.on_congestion = partial(self._pause, handle)
        self._post(lambda: self._core.open(handle, message, grammar, account))
        if sink.is_congested:
            self._pause(handle, True)
        return handle

    def draft(self, handle: int, nodes: DraftNodes) -> None:
        """See `Engine.draft`."""
        if handle not in self._sinks:
            return
        drafts = self._drafts[handle]
        if len(drafts) >= MAX_QUEUED_DRAFTS:
            raise ProtocolError(f"{len(drafts)} draft messages of this session are unread, the limit is reached")
        drafts.append(nodes)
        self._post(lambda: self._core.draft(handle, drafts.popleft()))

    def close(self, handle: int) -> None:
        """See `Engine.close`."""
        if self._forget(handle) is not None:
            self._post(lambda: self._core.close(handle))

    def _pause(self, handle: int, is_paused: bool) -> None:
        self._post(lambda: self._core.pause(handle, is_paused))

    def _post(self, command: _Command) -> None:
        self._commands.append(command)
        if not self._news.is_set():  # one that is set makes the thread look, after what was appended by then
            self._news.set()

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                self.heartbeat.beat()
                self._obey()
                step = self._core.begin()
                self._work_beside(step)
                result = self._core.finish(step)
                self._deliver(result.events)
                self._observe()
                self._report = result.report
                if result.report is None:
                    self.heartbeat.rest()
                    self._news.wait(None if result.wait_s == inf else result.wait_s)
        except BaseException as error:
            logger.exception("the engine thread has died")
            self._error = error
            self._call_on_loop(self._fail_all)
        finally:
            self.heartbeat.rest()

    def _work_beside(self, step: StepInFlight) -> None:
        """Do what waits while the device computes; when it is nearly done, it is waited for and nothing else."""
        while not step.pending.is_ready and (spare_s := step.due_s - monotonic_s()) > 0:
            self._observe()
            self._obey()
            self._news.wait(min(spare_s, _LOOK_S))

    def _obey(self) -> None:
        """Carry out the commands that have come."""
        self._news.clear()
        events: list[Event] = []
        while self._commands:
            events += self._commands.popleft()() or ()
        self._deliver(events)

    def _observe(self) -> None:
        if self._report is not None:
            self._observer.step(self._report)
            self._report = None

    def _deliver(self, events: list[Event]) -> None:
        if events:
            self._call_on_loop(lambda: self._dispatch(events))

    def _call_on_loop(self, call: Callable[[], None]) -> None:
        if not call_on_loop(self._loop, call):
            logger.debug("event loop closed before the engine's last events were delivered")

    def _dispatch(self, events: Iterable[Event]) -> None:
        for handle, event in events:
            sink = self._sinks.get(handle)
            if sink is None:
                continue
            if isinstance(event, Verdict):
                if event.finish_reason:
                    self._forget(handle)
                sink.verdict(event)
            elif isinstance(event, SessionOpened):
                sink.opened(event)
            else:
                self._forget(handle)
                sink.failed(event)

    def _forget(self, handle: int) -> SessionSink | None:
        self._drafts.pop(handle, None)
        if (account := self._accounts.pop(handle, None)) is not None:
            self._quota.closed(account)
        return self._sinks.pop(handle, None)

    def _fail_all(self) -> None:
        error: SpecEdgeError = EngineDead(f"the engine has stopped: {self._error}")
        sinks = list(self._sinks.values())
        self._sinks.clear()
        for sink in sinks:
            sink.failed(error)
        self._failed.set()


def check_session(message: OpenSession, info: ServerInfo) -> None:
    """Raise InvalidRequest, naming value and limit, for anything the engine could not serve."""
    params, num_prompt = message.sampling, len(message.prompt_ids)
    params.validate(info.vocab_size)
    if not num_prompt:
        raise InvalidRequest("the prompt is empty; it needs at least one token", "prompt_ids")
    check_token_ids(message.prompt_ids, info.vocab_size, "prompt_ids")
    check_token_ids(message.committed_ids, info.vocab_size, "committed_ids")
    if num_prompt + params.max_tokens > info.max_len:
        raise InvalidRequest(
            f"{num_prompt} prompt tokens and max_tokens {params.max_tokens} exceed the context of {info.max_len} "
            "tokens",
            "max_tokens",
        )
    if params.num_prompt_logprobs is not None and (1 + params.num_prompt_logprobs) * num_prompt > MAX_PROMPT_LOGPROBS:
        raise InvalidRequest(
            f"prompt_logprobs is {params.num_prompt_logprobs} for a prompt of {num_prompt} tokens; together they may "
            f"ask for at most {MAX_PROMPT_LOGPROBS} log-probabilities",
            "prompt_logprobs",
        )
    if len(message.committed_ids) >= params.max_tokens:
        raise InvalidRequest(
            f"{len(message.committed_ids)} committed tokens leave nothing to generate: "
            f"max_tokens is {params.max_tokens}",
            "committed_ids",
        )


def monotonic_s() -> float:
    """The engine's clock, in seconds."""
    return time.perf_counter()
