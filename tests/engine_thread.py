"""An engine thread over a fake target that waits or fails when told to, and sinks that listen to it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fake_target import VOCAB_SIZE, FakeStep, FakeTarget
from fakes import until

from specedge.block_pool import BlockPool
from specedge.errors import (
    SpecEdgeError,
)
from specedge.sampling import SamplingParams
from specedge.wire.messages import OpenSession, ServerInfo, SessionOpened, System, Verdict
from specedge_verifier.core import EngineCore
from specedge_verifier.engine import EngineThread, monotonic_s
from specedge_verifier.queue_bounds import QueueLimits
from specedge_verifier.scheduler import Schedule, Scheduler, SchedulerLimits
from specedge_verifier.step_report import StepReport
from specedge_verifier.step_time import StepTime

MAX_LEN = 256
INFO = ServerInfo("fake", "f", VOCAB_SIZE, MAX_LEN, 24, (), 4, "0")
PROMPT = (1, 2, 3, 4, 0, 1)
OTHER_PROMPT = (4, 4, 2)
TIMEOUT_S = 20.0


class Target(FakeTarget):
    """A fake target of which one forward waits for `release` and one fails; both are counted from 1."""

    def __init__(self, *, holds_at: int = 0, fails_at: int = 0) -> None:
        super().__init__()
        self.num_forwards = 0
        self._holds_at = holds_at
        self._fails_at = fails_at
        self._held = threading.Event()
        self._released = threading.Event()

    async def held(self) -> None:
        """Returns with the engine thread inside the forward that waits."""
        await until(self._held.is_set, TIMEOUT_S)

    def release(self) -> None:
        self._released.set()

    def launch(self, schedule: Schedule) -> FakeStep:
        self.num_forwards += 1
        if self.num_forwards == self._holds_at:
            self._held.set()
            self._released.wait(TIMEOUT_S)
        if self.num_forwards == self._fails_at:
            raise RuntimeError("the device was lost")
        return super().launch(schedule)


class Device(Target):
    """A target that computes beside the engine thread; its steps end when they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.is_done = threading.Event()

    def launch(self, schedule: Schedule) -> FakeStep:
        return DeviceStep(self, super().launch(schedule))

    def release(self) -> None:
        super().release()
        self.is_done.set()


class DeviceStep(FakeStep):
    """Implements `PendingTokens`."""

    def __init__(self, device: Device, step: FakeStep) -> None:
        self._device = device
        self._step = step

    @property
    def is_ready(self) -> bool:
        return self._device.is_done.is_set()

    def tokens(self) -> list[int]:
        assert self._device.is_done.wait(TIMEOUT_S)
        return self._step.tokens()


class Sink:
    """Records what a session is told, and on which thread."""

    def __init__(self, is_congested: bool = False) -> None:
        self.on_congestion: Callable[[bool], None] | None = None
        self.is_congested = is_congested
        self.events: list[SessionOpened | Verdict | SpecEdgeError] = []
        self.threads: set[int] = set()
        self._ended = asyncio.Event()

    @property
    def tokens(self) -> list[int]:
        return [token for event in self.events if isinstance(event, Verdict) for token in event.token_ids]

    def opened(self, message: SessionOpened) -> None:
        self._take(message)

    def verdict(self, message: Verdict) -> None:
        self._take(message)
        if message.finish_reason:
            self._ended.set()

    def failed(self, error: SpecEdgeError) -> None:
        self._take(error)
        self._ended.set()

    def _take(self, event: SessionOpened | Verdict | SpecEdgeError) -> None:
        self.events.append(event)
        self.threads.add(threading.get_ident())

    async def end(self) -> Verdict | SpecEdgeError:
        """The session's last event, once it has come."""
        async with asyncio.timeout(TIMEOUT_S):
            await self._ended.wait()
        event = self.events[-1]
        assert not isinstance(event, SessionOpened)
        return event

    async def answer(self) -> list[int]:
        """The whole answer; fails with the session."""
        end = await self.end()
        if isinstance(end, SpecEdgeError):
            raise end
        return self.tokens


class Steps:
    """Implements `EngineObserver`."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []

    def step(self, report: StepReport) -> None:
        self.reports.append(report)


class OpenEngine(EngineThread):
    """An engine thread that can be looked into."""

    def inspect(self, look: Callable[[EngineCore], None]) -> None:
        """Runs `look` on the engine thread between two steps."""
        self._post(lambda: look(self._core))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The engine between two steps."""

    num_sessions: int
    num_held: int


@asynccontextmanager
async def running(
    target: Target,
    *,
    max_sessions: int = 8,
    max_batch_size: int = 4,
    steps: Steps | None = None,
    expected_step_s: float = 0.001,
) -> AsyncIterator[OpenEngine]:
    """An engine thread, stopped at the end."""
    limits = SchedulerLimits(max_batch_size, max_num_batched_tokens=64, max_tree_nodes=8)
    scheduler = Scheduler(BlockPool(256, 4), limits, StepTime(64, [(1, expected_step_s), (64, 1.2 * expected_step_s)]))
    core = EngineCore(scheduler, target, INFO, monotonic_s)
    # A slow machine must not refuse what a test wants to be queued.
    limits = QueueLimits(max_sessions, max_predicted_ttft_s=3600.0)
    engine = OpenEngine(core, INFO, limits, asyncio.get_running_loop(), steps or Steps())
    engine.start()
    try:
        yield engine
    finally:
        target.release()
        await asyncio.to_thread(engine.stop)
        assert not engine.is_healthy, "the thread must have ended"


def look_into(engine: OpenEngine) -> "asyncio.Future[Snapshot]":
    """The engine's state as soon as its present step has ended."""
    seen: Future[Snapshot] = Future()

    def look(core: EngineCore) -> None:
        pool = core.scheduler.pool
        pool.check_integrity()
        seen.set_result(Snapshot(core.num_sessions, pool.num_held))

    engine.inspect(look)
    return asyncio.wrap_future(seen)


def opening(
    num_tokens: int, prompt: tuple[int, ...] = PROMPT, system: System = "autoregressive", drafter_id: str = ""
) -> OpenSession:
    return OpenSession("r", prompt, (), SamplingParams(max_tokens=num_tokens), "f", drafter_id, system)
