"""An edge's process: the real generation service, pool and drafter, and the users who ask it."""

import asyncio
from contextlib import aclosing
from contextvars import copy_context
from dataclasses import dataclass

from edge_agent.draft_source import DraftSource
from edge_agent.generation import GenerationOptions, GenerationRequest, GenerationService
from edge_agent.lookup_source import LookupSource
from edge_agent.stream_observer import StreamCounters
from edge_agent.verifier_addresses import FixedAddresses
from edge_agent.verifier_client import VerifierClient
from edge_agent.verifier_member import PoolTimes
from edge_agent.verifier_pool import VerifierPool
from protocol_simulation.channel import EDGE
from protocol_simulation.clock import TASKS
from protocol_simulation.drafting import SimulatedDrafter
from protocol_simulation.engine import Histories
from protocol_simulation.models import Draft
from protocol_simulation.network import Network
from protocol_simulation.tries import Answer
from protocol_simulation.verifier import FINGERPRINT
from protocol_simulation.world import MODELS, World
from specedge.drafting.draft_session import DraftingSettings
from specedge.errors import CapacityExceeded, VerifierUnavailable
from specedge.sampling import SamplingParams

REASONS = {
    "is shutting down": "told to leave",
    "serves no longer": "moved away before it was told",
    "answers nothing": "moved away from silence",
    "sent nothing": "silence on an open stream",
    "reset by peer": "connection lost",
    "failed to connect": "not connected",
    "Server is stopping": "not connected",
    "has what it needs": "another model everywhere",
    "models differ": "another model there",
    "limit is reached": "full",
    "engine has": "engine dead",
    "begins at position": "wrong position",
    "follows the end": "wrong position",
    "did not begin with": "wrong beginning",
    "before the answer": "ended early",
}


class Told(StreamCounters):
    """Counts why streams broke."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def broken(self, reason: str) -> None:
        super().broken(reason)
        kind = next((kind for part, kind in REASONS.items() if part in reason), "something else")
        self._world.note(f"stream broke: {kind}", reason)


TIMES = PoolTimes(
    ping_every_s=0.7,
    idle_ping_every_s=1.5,
    ping_timeout_s=0.6,
    sole_ping_timeout_s=1.0,
    refused_pause_s=1.0,
    left_out_pause_s=2.0,
    spread_s=0.1,
    meet_s=0.3,
)


@dataclass(frozen=True, slots=True)
class Wish:
    """What one user asks for, and how.

    Attributes:
        starts_s: when.
        reading_s: between two bursts; a slow reader's is long.
        leaves_after: bursts; None stays to the end.
    """

    prompt: tuple[int, ...]
    sampling: SamplingParams
    starts_s: float
    speculates: bool
    priority: int
    reading_s: float
    leaves_after: int | None


@dataclass(frozen=True, slots=True)
class EdgeSetup:
    """What edges of a scenario have in common.

    Attributes:
        drafting: None looks up instead.
        agreement: how often the draft's first guess is right.
        num_slots: of the draft model.
        gives_up: whether an answer may be lost while no verifier answers.
    """

    drafting: DraftingSettings | None
    agreement: float
    num_slots: int
    step_s: float
    options: GenerationOptions
    gives_up: bool


class Edge:
    """One process, from its start to its end or its death.

    Args:
        wishes: its users', each asked once it is due.
    """

    def __init__(
        self,
        world: World,
        network: Network,
        histories: Histories,
        name: str,
        addresses: tuple[str, ...],
        setup: EdgeSetup,
        wishes: list[Wish],
    ) -> None:
        self.name = name
        self.is_up = True
        self.counters = Told(world)
        self.unfulfilled = dict(enumerate(wishes))
        self._models: dict[str, str] = {}  # by request
        self._begun: set[str] = set()  # answers of which something has come
        self.is_tampered = False  # somebody has repeated verdicts on its way
        self._world = world
        self._network = network
        self._histories = histories
        self._addresses = addresses
        self._setup = setup
        self._tasks: list[asyncio.Task[object]] = []
        self.done = asyncio.Event()

    def start(self) -> None:
        """Begins, in a process of its own."""
        context = copy_context()
        context.run(TASKS.set, self._tasks)
        context.run(EDGE.set, self.name)
        asyncio.get_running_loop().create_task(self._run(), context=context)

    def kill(self) -> None:
        """The process is gone, with all it had."""
        self.is_up = False
        for connection in self._network.between(self.name, None):
            connection.cut(0.0, self._world.dice.uniform(0.0, 1.0))
        for task in self._tasks:
            task.cancel()

    async def _run(self) -> None:
        world = self._world
        self._pool = VerifierPool(
            FixedAddresses(self._addresses),
            lambda address: VerifierClient(address, self.counters),
            self.counters,
            TIMES,
            world.fork(),
        )
        self._source = self._make_source()
        self._service = GenerationService(self._pool, self._source, FINGERPRINT, self._setup.options)
        running: asyncio.Task[None] | None = None
        try:
            await self._start()
            running = asyncio.create_task(self._pool.run())
            users = [asyncio.create_task(self._user(number, wish)) for number, wish in [*self.unfulfilled.items()]]
            if users:
                await asyncio.wait(users)
        except Exception as error:
            world.fail(f"edge {self.name} raised {error!r}")
        finally:
            if running is not None:
                running.cancel()
                await asyncio.wait({running})
            await self._pool.close()
        if self.is_up:
            self._check_settled()
            self.done.set()

    async def _start(self) -> None:
        while True:
            try:
                await self._service.start()
                return
            except VerifierUnavailable as error:
                self._world.check(self._setup.gives_up, f"edge {self.name} found no verifier: {error}")

    def _make_source(self) -> DraftSource:
        setup = self._setup
        if setup.drafting is None:
            return LookupSource(max_nodes=12)
        model = Draft(self._world, setup.agreement, width=3)
        source = SimulatedDrafter(self._world, self._histories, model, setup.drafting, setup.num_slots, setup.step_s)
        source.start()
        return source

    async def _user(self, number: int, wish: Wish) -> None:
        await asyncio.sleep(max(0.0, wish.starts_s - self._world.now_s))
        num_asked = 0
        while number in self.unfulfilled:
            name = f"{self.name}/{number}.{num_asked}"
            num_asked += 1
            try:
                await self._ask(name, wish)
                del self.unfulfilled[number]
            except CapacityExceeded as error:
                self._world.note("refused: full", name)
                await asyncio.sleep(error.retry_after_s * self._world.dice.uniform(0.5, 1.0))
            except VerifierUnavailable as error:
                self._world.note("answer given up", f"{name}: {error}")
                # A new answer is refused where another model is served than this edge knows of, and one that was begun
                # with a model that never comes back is lost.
                is_refused = name not in self._begun and self._world.counts["model replaced"]
                is_orphan = self._models.get(name) != MODELS[0]
                if not (self._setup.gives_up or is_refused or is_orphan):
                    self._world.fail(f"{name} was given up: {error}")
                    return
                await asyncio.sleep(0.2)
            except Exception as error:
                self._world.fail(f"{name} failed: {error!r}")
                return

    async def _ask(self, name: str, wish: Wish) -> None:
        world = self._world
        info = self._service.info
        assert info is not None
        self._models[name] = info.target_model
        tokens, finish_reason = world.texts[info.target_model].answer(wish.prompt, wish.sampling)
        self._histories.answers[name] = Answer(name, wish.prompt + tokens, len(wish.prompt), finish_reason)
        request = GenerationRequest(name, wish.prompt, wish.sampling, wish.speculates, priority=wish.priority)
        world.note("asked", f"{name}: {len(wish.prompt)} tokens and {len(tokens)} to come")
        got: tuple[int, ...] = ()
        reason, num_bursts = "", 0
        async with self._service.generate(request) as bursts, aclosing(bursts):  # type: ignore[type-var]
            async for burst in bursts:
                got += burst.token_ids
                self._begun.add(name)
                world.check(not reason, f"{name}: a burst follows the end")
                world.check(got == tokens[: len(got)], f"{name}: {got} is no beginning of {tokens}")
                reason = burst.finish_reason
                num_bursts += 1
                if num_bursts == wish.leaves_after and not reason:
                    world.note("user left", f"{name} after {len(got)} tokens")
                    return
                if wish.reading_s:
                    await asyncio.sleep(wish.reading_s)
        world.check(
            got == tokens and reason == finish_reason, f"{name}: {got} {reason} is not {tokens} {finish_reason}"
        )
        world.note("answered", f"{name}: {len(got)} tokens in {num_bursts} bursts")

    def _check_settled(self) -> None:
        world, counters = self._world, self.counters
        world.counts["failed over"] += counters.num_failed_over
        world.counts["went on without drafts"] += counters.num_drafts_refused
        world.counts["resumed tokens"] += counters.num_resumed_tokens
        world.check(
            not counters.num_drafts_refused or self.is_tampered, f"{counters.num_drafts_refused} drafts were refused"
        )
        for member in self._pool.members:
            world.check(not member.sessions, f"{member.address} still has sessions of {self.name}")
        if isinstance(self._source, SimulatedDrafter):
            core = self._source.core
            core.pool.check_integrity()
            world.counts["draft KV starved"] += core.stats.num_starved
            if self._source.is_idle:
                world.check(
                    core.num_sessions == 0 and core.pool.num_held == 0, f"the drafter of {self.name} holds slots"
                )
