"""A verifier and an edge under attack, a neighbour who must notice nothing, and what is left of both afterwards."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from random import Random

import openai
from fuzz.attacks import Show, Tally, attack_edge, attack_verifier
from http_support import tokenizer
from processes import Ask, Edge, Verifier, nothing_held, running
from resilience.site import broken_lines

from specedge.tokenizer import tokenizer_fingerprint
from specedge_cli.probe import probe

MIB = 2**20
MAX_GROWTH_MIB = 96.0
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
    """Asks the same seeded answers again and again; each must stay as it is when nobody disturbs it."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self.num_answers = 0
        self.problems: list[str] = []

    async def ask(self) -> None:
        """Until it is cancelled."""
        async with self._edge.client() as client:
            expected = {ask: await ask.streamed(client) for ask in NEIGHBOURS}
            while True:
                for ask in NEIGHBOURS:
                    try:
                        text = await ask.streamed(client)
                    except openai.APIError as error:
                        text = repr(error)
                    self.num_answers += 1
                    if text != expected[ask]:
                        self.problems.append(f"the neighbour got {text!r} in place of {expected[ask]!r}")
                    await asyncio.sleep(PAUSE_S)


def services(folder: Path) -> tuple[Verifier, Edge]:
    """The processes that are attacked, not yet started."""
    verifier = Verifier(folder, "--num-kv-blocks", "256", "--open-timeout-s", "1")
    return verifier, Edge(folder, "edge", verifier, "--num-draft-slots", "4096")


def run(options: Options, folder: Path, show: Show = lambda _: None) -> Result:
    """Start both processes, attack them, and end them.

    Args:
        options: how much.
        folder: takes the logs.
        show: is told how many more messages or bodies were sent.
    """
    verifier, edge = services(folder)
    with running(verifier, edge):
        result = asyncio.run(attack(verifier, edge, options, show))
    for service in (verifier, edge):
        result.problems.extend(f"{service.address} logged {line}" for line in broken_lines(service.log()))
    return result


async def attack(verifier: Verifier, edge: Edge, options: Options, show: Show = lambda _: None) -> Result:
    """Attack running processes in two halves, the neighbour beside them."""
    fingerprint = tokenizer_fingerprint(tokenizer())
    neighbour = Neighbour(edge)
    memory = {service.address: Memory(service.rss_bytes / MIB) for service in (verifier, edge)}
    tallies: list[tuple[Tally, Tally]] = []
    asking = asyncio.create_task(neighbour.ask())
    try:
        for half in range(2):
            draws = Random(f"{options.seed} grpc {half}"), Random(f"{options.seed} http {half}")
            attacks = (
                attack_verifier(verifier.address, fingerprint, options.num_messages // 2, draws[0], show),
                attack_edge(edge.url, options.num_bodies // 2, draws[1], show),
            )
            tallies.append(await asyncio.gather(*attacks))
            for service in (verifier, edge):
                size = service.rss_bytes / MIB
                setattr(memory[service.address], ("halfway", "after")[half], size)
    finally:
        asking.cancel()
        await asyncio.wait([asking])
    problems = list(neighbour.problems)
    if not asking.cancelled() and (error := asking.exception()) is not None:
        problems.append(f"the neighbour's answer failed: {error!r}")
    of_verifier, of_edge = (_joined(*halves) for halves in zip(*tallies, strict=True))
    problems += [*of_verifier.broken, *of_edge.broken]
    problems += await _left_over(verifier, edge)
    problems += [
        f"{address} grew by {sizes.after - sizes.halfway:.0f} MiB over the second half"
        for address, sizes in memory.items()
        if sizes.after - sizes.halfway > MAX_GROWTH_MIB
    ]
    return Result(of_verifier, of_edge, memory, neighbour.num_answers, problems)


async def _left_over(verifier: Verifier, edge: Edge) -> list[str]:
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
