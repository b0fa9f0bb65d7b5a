"""Times several engines' steps turn by turn, so that what disturbs the machine disturbs all of them."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from specedge_bench.shape_timing import Step, synchronize

STEPS_PER_TURN = 5
MIN_TURNS = 2
Clock = Callable[[], float]


def clock_for(device: torch.device, num_threads: int) -> Clock:
    """The wall's; of one thread on the CPU its own time, so that other processes on the machine do not count."""
    return time.thread_time if device.type == "cpu" and num_threads == 1 else time.perf_counter


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one engine's steps."""

    median_s: float
    p95_s: float
    num_steps: int

    @classmethod
    def of(cls, taken: Sequence[float]) -> "Times":
        ordered = sorted(taken)
        return cls(median(ordered), ordered[math.ceil(0.95 * len(ordered)) - 1], len(ordered))


def take_turns(
    steps: Mapping[str, Step],
    device: torch.device,
    num_steps: int,
    max_seconds: float,
    clock: Clock = time.perf_counter,
) -> dict[str, Times]:
    """Time every engine: A B C, A B C, ...

    Each turn begins with a step that is not counted, which brings the engine's weights back into the caches.

    Args:
        num_steps: counted steps of each engine.
        max_seconds: fewer steps, but two turns, once all together have taken so long.
    """
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    started_s, num_turns = time.perf_counter(), 0
    while num_turns * STEPS_PER_TURN < num_steps:
        if num_turns >= MIN_TURNS and time.perf_counter() - started_s > max_seconds:
            break
        for name, step in steps.items():
            step()
            synchronize(device)
            taken[name] += (seconds_of(step, device, clock) for _ in range(STEPS_PER_TURN))
        num_turns += 1
    return {name: Times.of(seconds) for name, seconds in taken.items()}


def seconds_of(step: Step, device: torch.device, clock: Clock) -> float:
    """From the call of a step until its logits are there."""
    started_s = clock()
    step()
    synchronize(device)
    return clock() - started_s
