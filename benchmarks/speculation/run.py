"""Runs the sections one after the other; repetitions go round all cells, so that the machine's moods are shared."""

from dataclasses import dataclass, field

import httpx
from rich.progress import Progress

from benchmarks.exactness.prompts import all_prompts
from benchmarks.speculation.acceptance import Acceptance, Lockstep
from benchmarks.speculation.cells import Section
from benchmarks.speculation.client import Ask, ask_all
from benchmarks.speculation.deployment import Variant, deployed
from benchmarks.speculation.measure import Result, Tally
from specedge_cli.supervisor import Interrupts

RANKINGS = ((0.0, None), (0.7, True), (0.7, False), (1.0, True), (1.0, False))
"""Temperature, and whether candidates are ranked with the target's noise."""

_WARM_UP_USERS = 2
_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    Attributes:
        num_answers: of a line in the acceptance table, each of `acceptance_tokens`.
        num_repetitions: of a cell with one user; one with many is measured once.
        max_tokens: of an answer in a cell; see also Section.length_factor.
        warm_up_tokens: of the answers that each edge gives before anything is measured.
    """

    num_answers: int = 12
    acceptance_tokens: int = 64
    num_repetitions: int = 3
    max_tokens: int = 48
    warm_up_tokens: int = 32


FULL = Effort()
QUICK = Effort(num_answers=2, acceptance_tokens=32, num_repetitions=1, max_tokens=24, warm_up_tokens=16)


@dataclass(slots=True)
class Measured:
    """All that a run found."""

    acceptance: list[Acceptance] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)


class Interrupted(Exception):
    """The user wants no more."""


async def measure_acceptance(effort: Effort, interrupts: Interrupts, progress: Progress) -> list[Acceptance]:
    """Section (a)."""
    task = progress.add_task("acceptance", total=len(RANKINGS) * effort.num_answers)
    lockstep = Lockstep()
    prompts = all_prompts()[: effort.num_answers]

    def answered() -> None:
        progress.advance(task)
        _go_on(interrupts)

    return [
        await lockstep.measure(temperature, coupled, prompts, effort.acceptance_tokens, answered)
        for temperature, coupled in RANKINGS
    ]


async def measure_section(
    section: Section, effort: Effort, max_budget: int, interrupts: Interrupts, progress: Progress
) -> list[Result]:
    """Every cell of a deployment."""
    rounds = [
        [cell for cell in section.cells if not repetition or cell.num_users == 1]
        for repetition in range(effort.num_repetitions)
    ]
    task = progress.add_task(f"{section.name}: starting", total=sum(map(len, rounds)))
    async with (
        deployed(section.pace, section.variants(max_budget), interrupts) as edges,
        httpx.AsyncClient(trust_env=False, timeout=_TIMEOUT_S) as client,
    ):
        progress.update(task, description=section.name)
        for edge in edges.values():
            requests = [
                Ask(prompt, section.temperature, 0, effort.warm_up_tokens) for prompt in _prompts(0, _WARM_UP_USERS)
            ]
            await ask_all(client, edge.url, requests)
        tallies = {cell: Tally() for cell in section.cells}
        for repetition, cells in enumerate(rounds):
            for cell in cells:
                edge = edges[Variant(cell.edge_mode, cell.batch_type, max_budget)]
                max_tokens = effort.max_tokens * (section.length_factor if cell.num_users == 1 else 1)
                template = Ask("", section.temperature, 1 + repetition, max_tokens)
                await tallies[cell].add(client, edge, cell, _prompts(repetition, cell.num_users), template)
                progress.advance(task)
                _go_on(interrupts)
    return [tally.result(section.name, cell) for cell, tally in tallies.items()]


def _prompts(repetition: int, num_users: int) -> list[str]:
    """The same for every cell; each repetition begins with the next one."""
    prompts = all_prompts()
    return [prompts[(repetition + user) % len(prompts)] for user in range(num_users)]


def _go_on(interrupts: Interrupts) -> None:
    if interrupts.count:
        raise Interrupted
