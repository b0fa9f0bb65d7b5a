"""One seed from its first message to the last block given back."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import grpc

import edge_agent.verifier_backoff
import edge_agent.verifier_channel
import specedge_verifier.grpc_server
from edge_agent.answer_stream import AnswerStream
from edge_agent.verifier_member import VerifierMember
from protocol_simulation.channel import Channel
from protocol_simulation.clock import VirtualLoop
from protocol_simulation.edge import Edge
from protocol_simulation.engine import Histories
from protocol_simulation.faults import Faults
from protocol_simulation.network import Network
from protocol_simulation.scenario import DEADLINE_S, FAULTS, Scenario
from protocol_simulation.server import Server
from protocol_simulation.verifier import Verifier
from protocol_simulation.world import World
from specedge_verifier.bridge import Outbox

PROGRESS_S: Final = DEADLINE_S + 15.0
"""By when every answer is there once nothing goes wrong any more: breakers pause up to 10 s, edges up to 5 s."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one seed came to.

    Attributes:
        counts: how often what happened.
        broken: rules that were broken.
        virtual_s: how long it took in virtual time, and from when nothing went wrong any more.
    """

    seed: int
    counts: Counter[str]
    broken: list[str]
    virtual_s: float
    recovery_s: float


class Simulation:
    """A scenario, running."""

    def __init__(self, world: World, kinds: Mapping[str, int]) -> None:
        self.world = world
        self.scenario = scenario = Scenario.draw(world.dice, kinds)
        self.histories = Histories()
        quality_dice = world.fork()
        self.network = Network(world, self.histories, lambda: scenario.draw_quality(quality_dice))
        self.verifiers = [
            Verifier(world, self.network, self.histories, address, scenario.verifiers) for address in scenario.addresses
        ]
        self.edges: list[Edge] = []
        self.recovery_s = 0.0

    async def run(self) -> None:
        """All of it."""
        world, scenario = self.world, self.scenario
        for verifier in self.verifiers:
            await verifier.start()
        for number, wishes in enumerate(scenario.wishes):
            self._add_edge(f"e{number}", wishes)
        await Faults(self).run(scenario.faults)
        healed_s = world.now_s
        world.note("healed")
        try:
            async with asyncio.timeout(PROGRESS_S):
                for edge in [*self.edges]:
                    if edge.is_up:
                        await edge.done.wait()
        except TimeoutError:
            left = {edge.name: [*edge.unfulfilled] for edge in self.edges if edge.is_up and not edge.done.is_set()}
            world.fail(f"no progress within {PROGRESS_S:g} s after all was well again: {left}")
            return
        self.recovery_s = world.now_s - healed_s
        for verifier in self.verifiers:
            await verifier.check_settled()
        for verifier in self.verifiers:
            await verifier.drain(0.0)

    def replace_edge(self, edge: Edge) -> None:
        """Its process dies; another one takes its place, whose users ask for what is still wanted."""
        edge.kill()
        self._add_edge(f"{edge.name}'", [*edge.unfulfilled.values()])

    def _add_edge(self, name: str, wishes: Any) -> None:
        scenario = self.scenario
        edge = Edge(self.world, self.network, self.histories, name, scenario.addresses, scenario.edges, wishes)
        self.edges.append(edge)
        edge.start()


def simulate(seed: int, *, prints: bool = False, kinds: Mapping[str, int] = FAULTS) -> Outcome:
    """Runs one seed; the same seed does the same, whatever ran before it.

    Args:
        seed: decides everything.
        prints: tell what happens.
        kinds: what may go wrong, and how often in relation to each other.
    """
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(_simulate(seed, prints, kinds))
    except RuntimeError as error:
        return Outcome(seed, Counter(), [str(error)], loop.time(), 0.0)
    finally:
        loop.close()


async def _simulate(seed: int, prints: bool, kinds: Mapping[str, int]) -> Outcome:
    world = World(seed, prints=prints)
    with _in_place_of_the_world_outside(world):
        simulation = Simulation(world, kinds)
        if prints:
            print(simulation.scenario)
        world.loop.set_exception_handler(lambda _, context: world.fail(f"in the event loop: {context}"))
        network = simulation.network
        with (
            patch.object(grpc.aio, "insecure_channel", lambda address, options: Channel(network, address)),
            patch.object(grpc.aio, "server", lambda options, interceptors: Server(network)),
        ):
            running = asyncio.create_task(simulation.run())
            failing = asyncio.create_task(world.has_failed.wait())
            await asyncio.wait({running, failing}, return_when=asyncio.FIRST_COMPLETED)
            if running.done() and not running.cancelled() and (error := running.exception()):
                world.fail(f"the simulation raised {error!r}")
            virtual_s = world.now_s
            await _end_all_tasks(world)
    return Outcome(seed, world.counts, world.broken, virtual_s, simulation.recovery_s)


async def _end_all_tasks(world: World) -> None:
    others = sorted(asyncio.all_tasks() - {asyncio.current_task()}, key=hash)
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others)


@contextmanager
def _in_place_of_the_world_outside(world: World) -> Iterator[None]:
    """Chance comes from the seed, sets are in order of creation, errors that are only logged are rules broken."""
    numbers = count(1)
    known: dict[int, tuple[int, object]] = {}

    def numbered(thing: object) -> int:
        if id(thing) not in known:
            known[id(thing)] = next(numbers), thing
        return known[id(thing)][0]

    log = _FailingLog(world)
    logging.getLogger().addHandler(log)
    try:
        with (
            patch.object(edge_agent.verifier_backoff, "random", SimpleNamespace(Random=world.fork)),
            patch.object(edge_agent.verifier_channel, "diagnose", lambda *_: None),
            patch.object(specedge_verifier.grpc_server.reflection, "enable_server_reflection", lambda *_: None),
            patch.object(VerifierMember, "__hash__", numbered),
            patch.object(AnswerStream, "__hash__", numbered),
            patch.object(Outbox, "__hash__", numbered),
        ):
            yield
    finally:
        logging.getLogger().removeHandler(log)


class _FailingLog(logging.Handler):
    """What is logged with a traceback should not have happened."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self._world.fail(f"{record.name} logged {record.getMessage()}: {record.exc_info[1]!r}")
