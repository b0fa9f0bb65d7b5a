"""A verifier and an edge under attack, a neighbour who must notice nothing, and what is left of both afterwards."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx
import openai
from fuzz.attacks import Show, Tally, attack_edge, attack_verifier, replay, told
from fuzz.inputs import Case
from http_support import tokenizer
from processes import Ask, Edge, Service, Verifier, nothing_held, running
from resilience.site import broken_lines

from specedge.tokenizer import tokenizer_fingerprint
from specedge_cli.probe import probe

MIB = 2**20
MAX_GROWTH_MIB = 64.0
"""Memory that a process may take over the second half of an attack."""
PAUSE_S = 0.2
NEIGHBOURS = [
    Ask(f"The {animal} went to the market and", seed=40 + number, max_tokens=48, is_chat=number % 2 == 0)
    for number, animal in enumerate(("fox", "owl", "hare", "crow"))
]


@dataclass(frozen=True, slots=True)
class Options:
    """How much is sent, and from which seed."""

    num_messages: int = 100_000
    num_bodies: int = 100_000
    seed: int = 0


@dataclass(slots=True)
class Memory:
    """Resident memory of one process in MiB: before, after the first half, at the end."""

    before: float
    halfway: float = 0.0
    after: float = 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it; `problems` is empty if all is well."""

    verifier: Tally
    edge: Tally
    memory: dict[str, Memory]
    num_answers: int
    problems: list[str]


class Neighbour:
    """Asks the same seeded answers again and again; each must stay as it was before anybody disturbed it."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self.num_answers = 0
        self.problems: list[str] = []

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Asks while the block runs, and asks for each answer once more after it."""
        async with self._edge.client() as client:
            expected = {ask: await ask.streamed(client) for ask in NEIGHBOURS}
            has_ended = asyncio.Event()
            asking = asyncio.create_task(self._ask(client, expected, has_ended))
            try:
                yield
            finally:
                has_ended.set()
                await asking

    async def _ask(self, client: Any, expected: dict[Ask, str], has_ended: asyncio.Event) -> None:
        is_last = False
        while not is_last:
            is_last = has_ended.is_set()
            for ask in NEIGHBOURS:
                try:
                    text = await ask.streamed(client)
                except (openai.APIError, httpx.HTTPError, AssertionError) as error:
                    text = repr(error)
                self.num_answers += 1
                if text != expected[ask]:
                    self.problems.append(f"the neighbour got {text!r} in place of {expected[ask]!r}")
                await asyncio.sleep(PAUSE_S)


def services(folder: Path) -> tuple[Verifier, Edge]:
    """The processes that are attacked, not yet started."""
    verifier = Verifier(folder, "--num-kv-blocks", "256", "--open-timeout-s", "1")
    return verifier, Edge(folder, "edge", verifier, "--num-draft-slots", "4096")


def run(options: Options, folder: Path, show: Show = lambda _: None, cases: Sequence[Case] | None = None) -> Result:
    """Start both processes, attack them, and end them.

    Args:
        options: how much.
        folder: takes the logs.
        show: is told how many more messages or bodies were sent.
        cases: are sent again, and nothing else.
    """
    verifier, edge = services(folder)
    with running(verifier, edge):
        work = attack(verifier, edge, options, show) if cases is None else send_again(verifier, edge, cases)
        result = asyncio.run(work)
    result.problems.extend(logged(verifier, edge))
    return result


def logged(*attacked: Service) -> list[str]:
    """What only a process with a mistake logs."""
    return [f"{service.address} logged {line}" for service in attacked for line in broken_lines(service.log())]


async def attack(verifier: Verifier, edge: Edge, options: Options, show: Show = lambda _: None) -> Result:
    """Attack running processes in two halves, the neighbour beside them."""
    fingerprint = tokenizer_fingerprint(tokenizer())
    neighbour, memory = Neighbour(edge), _memory(verifier, edge)
    tallies: list[tuple[Tally, Tally]] = []

    def goes_on() -> bool:
        return verifier.is_running and edge.is_running

    async with neighbour.asking():
        for half in range(2):
            draws = Random(f"{options.seed} grpc {half}"), Random(f"{options.seed} http {half}")
            attacks = (
                attack_verifier(verifier, fingerprint, options.num_messages // 2, draws[0], goes_on, show),
                attack_edge(edge, options.num_bodies // 2, draws[1], goes_on, show),
            )
            tallies.append(await asyncio.gather(*attacks))
            _measure(memory, ("halfway", "after")[half], verifier, edge)
    of_verifier, of_edge = (_joined(*halves) for halves in zip(*tallies, strict=True))
    return await _result(verifier, edge, (of_verifier, of_edge), memory, neighbour)


async def send_again(verifier: Verifier, edge: Edge, cases: Sequence[Case]) -> Result:
    """Send inputs to running processes again, the neighbour beside them."""
    neighbour, memory = Neighbour(edge), _memory(verifier, edge)
    async with neighbour.asking():
        tallies = await replay(verifier, edge, cases)
    for when in ("halfway", "after"):
        _measure(memory, when, verifier, edge)
    return await _result(verifier, edge, tallies, memory, neighbour)


async def _result(
    verifier: Verifier, edge: Edge, tallies: tuple[Tally, Tally], memory: dict[str, Memory], neighbour: Neighbour
) -> Result:
    problems = [*neighbour.problems, *(line for tally in tallies for line in told(tally.broken))]
    problems += await _left_over(verifier, edge)
    problems += [
        f"{address} grew by {sizes.after - sizes.halfway:.0f} MiB over the second half"
        for address, sizes in memory.items()
        if sizes.after - sizes.halfway > MAX_GROWTH_MIB
    ]
    return Result(*tallies, memory, neighbour.num_answers, problems)


def _memory(*attacked: Service) -> dict[str, Memory]:
    return {service.address: Memory(service.rss_bytes / MIB) for service in attacked}


def _measure(memory: dict[str, Memory], when: str, *attacked: Service) -> None:
    """The present sizes of those that still run."""
    for service in attacked:
        if service.is_running:
            setattr(memory[service.address], when, service.rss_bytes / MIB)


async def _left_over(verifier: Verifier, edge: Edge) -> list[str]:
    ended = [service for service in (verifier, edge) if not service.is_running]
    if ended:
        return [f"{service.address} has ended with exit code {service.exit_code()}" for service in ended]
    try:
        await nothing_held(verifier, edge, timeout_s=30.0)
    except AssertionError as error:
        return [str(error)]
    reasons = [(service, await asyncio.to_thread(probe, service.address, 5.0)) for service in (verifier, edge)]
    return [f"{service.address} does not serve: {reason}" for service, reason in reasons if reason is not None]


def _joined(first: Tally, second: Tally) -> Tally:
    latest = first.latest + second.latest
    return Tally(
        first.num_sent + second.num_sent, first.outcomes + second.outcomes, first.broken + second.broken, latest
    )
