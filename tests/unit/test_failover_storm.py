"""Many edges lose one of three verifiers, in virtual time: the edges' own code, verifiers and network modelled."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, cast

from edge_harness import QUICK
from fakes import FINGERPRINT, INFO
from virtual_time import run_virtually

from edge_agent.draft_source import NullDraftSource
from edge_agent.generation import GenerationRequest, GenerationService
from edge_agent.stream_observer import StreamCounters
from edge_agent.verifier_addresses import FixedAddresses
from edge_agent.verifier_client import Pulse, VerifierClient
from edge_agent.verifier_pool import VerifierPool
from specedge.errors import CapacityExceeded, SpecEdgeError, VerifierDraining, VerifierUnavailable
from specedge.sampling import SamplingParams
from specedge.wire.load_hint import LoadHint
from specedge.wire.messages import OpenSession, ServerInfo, SessionOpened, Verdict
from specedge_verifier.bridge import Outbox
from specedge_verifier.service import TELL_WITHIN_S, tell_draining

NUM_EDGES = 1000
PLACES = 512
STEP_S = 2.0
PREFILL_S = 0.001
RTT_S = 0.02
LOST_S, BACK_S, END_S = 6.0, 12.0, 24.0
SETTLED_S = 4.0
MOVED_S = 0.2
NAMES = ("a:1", "b:1", "c:1")


MODELLED = replace(INFO, max_batch_size=PLACES)


@dataclass
class ModelledVerifier:
    """Prefills sessions one after the other, and has so many places."""

    is_alive: bool = True
    is_draining: bool = False
    streams: "set[ModelledStream]" = field(default_factory=set)
    opens_s: list[float] = field(default_factory=list)
    pings_s: list[float] = field(default_factory=list)
    prefilled_s: float = 0.0

    def die(self) -> None:
        self.is_alive = False
        for stream in self.streams:
            stream.ended.set()
        self.streams.clear()

    async def drain(self) -> None:
        self.is_draining = True
        await tell_draining([cast(Outbox, stream) for stream in self.streams])


class ModelledStream:
    """Implements what is used of `VerifierStream`, and what the verifier has of it."""

    def __init__(self, verifier: ModelledVerifier, opening: OpenSession) -> None:
        self.ended = asyncio.Event()
        self.heard_s = 0.0
        self.on_draining: Callable[[], None] = lambda: None
        self.draining = lambda: self.on_draining()
        self._error: SpecEdgeError = VerifierUnavailable("connection reset")
        self._verifier = verifier
        self._next = len(opening.prompt_ids) + len(opening.committed_ids)
        self._end = len(opening.prompt_ids) + opening.sampling.max_tokens
        self._is_open = False

    async def __aenter__(self) -> "ModelledStream":
        self._verifier.opens_s.append(asyncio.get_running_loop().time())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._verifier.streams.discard(self)

    def leave(self, error: SpecEdgeError) -> None:
        self._error = error
        self.ended.set()

    async def read(self, timeout_s: float) -> SessionOpened | Verdict:
        verifier, now_s = self._verifier, asyncio.get_running_loop().time()
        await asyncio.sleep(RTT_S)
        if not verifier.is_alive:
            raise VerifierUnavailable("connection refused")
        if not self._is_open:
            if verifier.is_draining:
                raise VerifierDraining("it drains")
            if len(verifier.streams) >= PLACES:
                raise CapacityExceeded("the queue is full")
            self._is_open = True
            verifier.streams.add(self)
            verifier.prefilled_s = max(verifier.prefilled_s, now_s) + PREFILL_S
            await self._wait(verifier.prefilled_s - now_s)
            return SessionOpened(0, 64)
        await self._wait(STEP_S)
        self._next += 1
        return Verdict(self._next - 1, (7,), "length" if self._next == self._end else "")

    async def _wait(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self.ended.wait()
        except TimeoutError:
            return
        raise self._error


class ModelledClient:
    """Implements what is used of `VerifierClient`."""

    refusal = failure = round_trip_s = None
    is_connected = True

    def __init__(self, address: str, verifier: ModelledVerifier) -> None:
        self.address = address
        self._verifier = verifier

    async def get_server_info(self, fingerprint: str, deadline_s: float) -> ServerInfo:
        return await self.ask_server_info(deadline_s)

    async def ask_server_info(self, timeout_s: float) -> ServerInfo:
        if await self.ping() is None:
            raise VerifierUnavailable("connection refused")
        return MODELLED

    def check_tokenizer(self, info: ServerInfo, fingerprint: str) -> None:
        assert info.tokenizer_fingerprint == fingerprint

    async def ping(self, timeout_s: float = 1.0) -> Pulse | None:
        self._verifier.pings_s.append(asyncio.get_running_loop().time())
        await asyncio.sleep(RTT_S)
        load = LoadHint(len(self._verifier.streams), PLACES)
        return Pulse(not self._verifier.is_draining, load) if self._verifier.is_alive else None

    def open_stream(self, opening: OpenSession, info: ServerInfo) -> Any:
        return ModelledStream(self._verifier, opening)


@dataclass
class Outcome:
    verifiers: dict[str, ModelledVerifier]
    num_lost: int = 0
    loads_when_lost: Counter[str] = field(default_factory=Counter)
    loads_at_end: Counter[str] = field(default_factory=Counter)
    failures: list[SpecEdgeError] = field(default_factory=list)
    pauses_s: list[float] = field(default_factory=list)
    num_failed_over: int = 0

    def loads(self) -> Counter[str]:
        return Counter({name: len(verifier.streams) for name, verifier in self.verifiers.items()})


async def edge(seed: int, outcome: Outcome) -> None:
    """One edge with one user, who asks again and again."""
    dice, counters, loop = random.Random(seed), StreamCounters(), asyncio.get_running_loop()
    pool = VerifierPool(
        FixedAddresses(NAMES),
        lambda address: cast(VerifierClient, ModelledClient(address, outcome.verifiers[address])),
        counters,
        dice=dice,
    )
    service = GenerationService(pool, NullDraftSource(), FINGERPRINT, replace(QUICK, verifier_deadline_s=30.0))
    await asyncio.sleep(dice.uniform(0.0, 1.0))
    await service.start()
    running = asyncio.create_task(pool.run())
    await asyncio.sleep(dice.uniform(0.0, 3.0))
    try:
        while loop.time() < END_S:
            params = SamplingParams(max_tokens=dice.randrange(3, 8))
            try:
                async with service.generate(GenerationRequest("r", (1,), params)) as bursts, aclosing(bursts):
                    last_s = loop.time()
                    async for _ in bursts:
                        if loop.time() - last_s > 1.5 * STEP_S:
                            outcome.pauses_s.append(loop.time() - last_s)
                        last_s = loop.time()
            except SpecEdgeError as error:
                outcome.failures.append(error)
            await asyncio.sleep(dice.uniform(0.1, 2.0))
    finally:
        running.cancel()
        await asyncio.wait({running})
        outcome.num_failed_over += counters.num_failed_over


async def storm() -> Outcome:
    outcome = Outcome({name: ModelledVerifier() for name in NAMES})
    lost = outcome.verifiers[NAMES[0]]
    edges = [asyncio.create_task(edge(seed, outcome)) for seed in range(NUM_EDGES)]
    await asyncio.sleep(LOST_S)
    outcome.num_lost = len(lost.streams)
    lost.die()
    await asyncio.sleep(SETTLED_S)
    outcome.loads_when_lost = outcome.loads()
    await asyncio.sleep(BACK_S - LOST_S - SETTLED_S)
    lost.is_alive = True
    await asyncio.sleep(END_S - BACK_S)
    outcome.loads_at_end = outcome.loads()
    for task in edges:
        task.cancel()
    await asyncio.wait(edges)
    return outcome


async def drained() -> Outcome:
    """A third as many edges, and one of their verifiers drains."""
    outcome = Outcome({name: ModelledVerifier() for name in NAMES})
    drains = outcome.verifiers[NAMES[0]]
    edges = [asyncio.create_task(edge(seed, outcome)) for seed in range(NUM_EDGES // 3)]
    await asyncio.sleep(LOST_S)
    outcome.num_lost = len(drains.streams)
    await drains.drain()
    await asyncio.sleep(MOVED_S)
    outcome.loads_when_lost = outcome.loads()
    await asyncio.sleep(STEP_S)
    for task in edges:
        task.cancel()
    await asyncio.wait(edges)
    return outcome


def most_in(times_s: list[float], window_s: float, begin_s: float, end_s: float) -> int:
    """Most events within any window between two times."""
    inside, first, most = sorted(at_s for at_s in times_s if begin_s <= at_s < end_s), 0, 0
    for last, at_s in enumerate(inside):
        while inside[first] < at_s - window_s:
            first += 1
        most = max(most, last - first + 1)
    return most


def test_a_thousand_edges_that_lose_a_verifier_spread_over_the_others_without_a_storm() -> None:
    outcome = run_virtually(storm())
    lost, *left = (outcome.verifiers[name] for name in NAMES)
    assert outcome.failures == []
    assert 250 < outcome.num_lost < 420, "two random choices had spread them evenly"
    assert outcome.num_lost <= outcome.num_failed_over <= 1.2 * outcome.num_lost, "each moves once"
    # The time of a step that was lost, a step, and what reconnecting and prefilling everyone took.
    assert max(outcome.pauses_s) < 2 * STEP_S + 1.0

    opens_s = [at_s for verifier in left for at_s in verifier.opens_s]
    assert most_in(opens_s, 1.0, LOST_S, BACK_S) < 1.5 * outcome.num_lost, "one attempt each, and new answers"
    assert most_in(opens_s, 0.1, LOST_S, BACK_S) < 0.6 * outcome.num_lost, "not all at once"
    assert most_in(lost.opens_s, 1.0, LOST_S + 1.0, BACK_S) < NUM_EDGES / 20, "who is gone is left alone"
    assert most_in(lost.pings_s, 1.0, LOST_S, BACK_S) < 2 * NUM_EDGES
    assert most_in(lost.opens_s, 1.0, BACK_S, END_S) < NUM_EDGES / 4, "who is back is not overrun"

    assert outcome.loads_when_lost[NAMES[0]] == 0
    alone = [outcome.loads_when_lost[name] for name in NAMES[1:]]
    assert max(alone) < 1.25 * min(alone) and sum(alone) > 0.8 * NUM_EDGES
    assert max(outcome.loads_at_end.values()) < 1.5 * min(outcome.loads_at_end[name] for name in NAMES)


def test_sessions_that_are_told_to_move_have_moved_within_seconds_and_not_all_at_once() -> None:
    outcome = run_virtually(drained())
    assert outcome.failures == []
    assert outcome.num_lost > 80
    assert outcome.loads_when_lost[NAMES[0]] == 0
    assert outcome.num_failed_over >= outcome.num_lost, "each moves once"
    opens_s = [at_s for name in NAMES[1:] for at_s in outcome.verifiers[name].opens_s]
    window_s = TELL_WITHIN_S / 10
    assert most_in(opens_s, window_s, LOST_S, LOST_S + 2.0) < 0.35 * outcome.num_lost, "spread, new answers included"
    assert max(outcome.pauses_s, default=0.0) < 2 * STEP_S + 0.2, "the step that was lost, and a prefill"
