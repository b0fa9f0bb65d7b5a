"""A verifier's process: the real server, service and engine, which can be drained, restarted and killed."""

import asyncio
from contextvars import copy_context
from dataclasses import dataclass

from protocol_simulation.clock import TASKS
from protocol_simulation.engine import LONGEST_STEP, Engine, Histories, WatchedCore
from protocol_simulation.models import Target
from protocol_simulation.network import Network
from protocol_simulation.texts import EOS, VOCAB_SIZE
from protocol_simulation.world import MODELS, World
from specedge.block_pool import BlockPool
from specedge.wire.messages import ServerInfo
from specedge_verifier.grpc_server import ServerOptions, VerifierServer
from specedge_verifier.queue_bounds import QueueBounds, QueueLimits
from specedge_verifier.scheduler import Scheduler, SchedulerLimits
from specedge_verifier.service import StreamOptions
from specedge_verifier.session_quota import SessionQuota
from specedge_verifier.step_time import StepTime
from specedge_verifier.waiting import BatchType

FINGERPRINT = "tokenizer"
MAX_LEN = 40
BLOCK_SIZE = 4
SETTLE_S = 5.0


@dataclass(frozen=True, slots=True)
class VerifierSetup:
    """What verifiers of a scenario have in common.

    Attributes:
        num_blocks: KV blocks; few enough make sessions preempt each other.
        max_sessions: running and waiting; one more is refused.
    """

    num_blocks: int
    max_batch_size: int
    max_rows: int
    max_sessions: int
    max_live_nodes: int
    max_unsent: int
    batch_type: BatchType
    step_s: float


class Verifier:
    """The process at an address: one incarnation after the other."""

    def __init__(
        self, world: World, network: Network, histories: Histories, address: str, setup: VerifierSetup
    ) -> None:
        self.address = address
        self.is_up = False
        self._world = world
        self._network = network
        self._histories = histories
        self._setup = setup

    async def start(self, model: str = MODELS[0]) -> None:
        """A new process, which knows nothing of those before it."""
        self._tasks: list[asyncio.Task[object]] = []
        context = copy_context()
        context.run(TASKS.set, self._tasks)
        await asyncio.get_running_loop().create_task(self._begin(model), context=context)
        self.is_up = True
        self._world.note("verifier started", f"{self.address} with {model}")

    async def _begin(self, model: str) -> None:
        setup, world = self._setup, self._world
        info = ServerInfo(
            model,
            FINGERPRINT,
            VOCAB_SIZE,
            MAX_LEN,
            setup.max_live_nodes,
            (EOS,),
            setup.max_batch_size,
            "0",
            max_nodes_per_message=8,
        )
        limits = SchedulerLimits(setup.max_batch_size, setup.max_rows, 8, setup.batch_type, stall_s=0.05)
        step_time = StepTime(setup.max_rows, [(1, setup.step_s), (setup.max_rows, 1.5 * setup.step_s)])
        self.target = Target(world, model)
        loop = asyncio.get_running_loop()
        self.core = WatchedCore(
            Scheduler(BlockPool(setup.num_blocks, BLOCK_SIZE), limits, step_time), self.target, info, loop.time
        )
        self.core.watch(world, self._histories)
        queue = QueueLimits(setup.max_sessions)
        self.engine = Engine(self.core, info, queue, loop, _Unobserved())
        bounds = QueueBounds(queue, lambda: self.core.forecast, loop.time)
        self.engine._quota = SessionQuota(bounds, self.core.scheduler.pool)
        self.engine.watch(world, setup.step_s)
        host, _, port = self.address.partition(":")
        stream = StreamOptions(open_timeout_s=2.0, linger_s=0.5, max_unsent_verdicts=setup.max_unsent)
        self.server = VerifierServer(self.engine, ServerOptions(host, int(port), health_poll_s=1.0, stream=stream))
        self.engine.start()
        await self.server.start()
        await self.server.set_ready()

    def kill(self, *, silently: bool) -> None:
        """The process, or with `silently` the whole machine, is gone."""
        self.is_up = False
        self._network.vanish(self.server._server, silently=silently)
        for task in self._tasks:
            task.cancel()

    async def drain(self, grace_s: float) -> None:
        """The process ends in good order."""
        self.is_up = False
        num_streams = self.server.service.num_streams
        await self.server.drain(grace_s)
        self._world.note("drained", f"{self.address} of {num_streams} streams within {grace_s:.2f} s")
        await asyncio.sleep(LONGEST_STEP * self._setup.step_s)  # as stop() waits for the step that runs
        self.check_idle()
        self.engine.stop()
        self.kill(silently=False)

    async def check_settled(self) -> None:
        """Once nobody asks for anything, and word of it has come, nothing is held."""
        under_way_s = max((line.busy_until_s for line in self._network.between(None, self.address)), default=0.0)
        try:
            async with asyncio.timeout(max(0.0, under_way_s - self._world.now_s) + SETTLE_S):
                await self.server.service.wait_idle()
                await asyncio.sleep(3 * self._setup.step_s)
        except TimeoutError:
            self._world.fail(f"{self.address}: {self.server.service.num_streams} streams are left without edges")
        self.check_idle()

    def check_idle(self) -> None:
        """No session, no block, no place, no quota."""
        world, scheduler = self._world, self.core.scheduler
        if self.server.service.num_streams:
            world.fail(f"{self.address}: {self.server.service.num_streams} streams are open")
        self.core.check_blocks()
        scheduler.pool.check_integrity()
        engine = self.engine
        if engine.is_healthy and not engine._commands:
            world.check(self.core.num_sessions == 0, f"{self.address}: {self.core.num_sessions} sessions are left")
            world.check(scheduler.pool.num_held == 0, f"{self.address}: {scheduler.pool.num_held} blocks are held")
            world.check(not scheduler._accounts, f"{self.address}: an account is still counted")
        if engine.is_healthy:
            world.check(engine.num_sessions == 0, f"{self.address}: {engine.num_sessions} sinks are left")
            world.check(not engine._quota._num_sessions, f"{self.address}: the quota counts sessions that have ended")
            world.check(
                not engine._drafts and not engine._accounts, f"{self.address}: drafts of sessions that have ended"
            )


class _Unobserved:
    def step(self, report: object) -> None:
        """Nobody looks."""
