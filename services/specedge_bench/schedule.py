"""In which order cells are measured, and which requests each of them has."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from specedge_bench.arrivals import Load
from specedge_bench.prompts.dataset import Prompt
from specedge_bench.records import cell_id
from specedge_bench.systems import SystemVariant


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """One system at one network and load, measured once."""

    system: SystemVariant
    network: str
    load: Load
    repetition: int

    @property
    def name(self) -> str:
        """The cell's name, equal in all repetitions."""
        return cell_id(self.system.name, self.network, self.load.name)


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request of a cell.

    Args:
        prompt: what is asked.
        seed: of its sampling.
        user: who sends it, and the edge that serves this user.
        due_s: open loop: seconds from the cell's start; None: when the user's last request has been answered.
    """

    prompt: Prompt
    seed: int
    user: int
    edge: int
    due_s: float | None


def interleave(
    systems: Sequence[SystemVariant], networks: Sequence[str], loads: Sequence[Load], num_repetitions: int
) -> Iterator[PlannedCell]:
    """Every cell of a run: systems take turns within each network and load, so that noise hits all of them alike."""
    for repetition in range(num_repetitions):
        for network in networks:
            for load in loads:
                for system in systems:
                    yield PlannedCell(system, network, load, repetition)


def plan_requests(
    prompts: Sequence[Prompt],
    load: Load,
    repetition: int,
    *,
    num_requests: int,
    num_edges: int,
    seed: int,
    column: int = 0,
    num_columns: int = 1,
    is_cold: bool = True,
) -> list[PlannedRequest]:
    """The requests of a cell: the same for every system, other prompts and seeds in every repetition.

    Args:
        prompts: taken in order, from where the last repetition ended; used again when they run out.
        load: who sends, and when.
        repetition: of the cell, from 0.
        num_requests: of a cell; see Load.num_requests.
        num_edges: users are spread over them in turn.
        seed: of the first request; also of the arrivals.
        column: number of the cell's network and load among the run's `num_columns`.
        is_cold: a prompt that its system has been sent before is marked, so that the prefix cache does not have it.
    """
    num_requests = load.num_requests(num_requests)
    first = repetition * num_requests
    arrivals = load.arrivals_s(num_requests, seed + repetition)
    num_users = num_requests if load.num_users is None else load.num_users

    def prompt(number: int) -> Prompt:
        num_rounds, place = divmod(number, len(prompts))
        num_sent = column + num_columns * num_rounds
        return prompts[place].marked(str(num_sent)) if is_cold and num_sent else prompts[place]

    return [
        PlannedRequest(
            prompt=prompt(first + index),
            seed=seed + first + index,
            user=index % num_users,
            edge=index % num_users % num_edges,
            due_s=None if arrivals is None else arrivals[index],
        )
        for index in range(num_requests)
    ]
