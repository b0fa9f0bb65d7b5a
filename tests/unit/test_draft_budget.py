"""The draft budget against hand-computed optima and against brute force."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from specedge_verifier.draft_budget import draft_budget
from specedge_verifier.step_time import StepTime

FLAT = StepTime(256, [(1, 0.030), (64, 0.030), (256, 0.120)])


def budget(probabilities: Sequence[Sequence[float]], **limits: Any) -> list[int]:
    """Counts of all sessions, those without candidates at the end included."""
    owners = np.repeat(np.arange(len(probabilities)), [len(own) for own in probabilities])
    flat = np.array([value for own in probabilities for value in own], dtype=np.float64)
    counts = draft_budget(flat, owners, **limits).tolist()
    return counts + [0] * (len(probabilities) - len(counts))


def test_rows_that_cost_nothing_are_all_taken() -> None:
    assert budget([[0.9, 0.01]], num_rows=1, num_tokens=1, max_nodes=64, step_time=FLAT) == [2]


def test_rows_that_cost_as_much_as_a_step_are_not() -> None:
    linear = StepTime(256, [(1, 0.010), (2, 0.020), (256, 2.56)])
    assert budget([[0.9, 0.8]], num_rows=8, num_tokens=8, max_nodes=64, step_time=linear) == [0]


def test_the_most_probable_nodes_of_all_sessions_come_first() -> None:
    steep = StepTime(8, [(1, 0.010), (8, 0.030)])  # a row costs 2.86 ms: pays from p = 0.0286 * goodput / 0.1 up
    counts = budget([[0.9, 0.2, 0.1], [0.8, 0.7]], num_rows=2, num_tokens=2, max_nodes=64, step_time=steep)
    assert counts == [1, 2]


def test_the_token_budget_is_kept() -> None:
    counts = budget([[0.9, 0.5], [0.8]], num_rows=2, num_tokens=2, max_nodes=2, step_time=FLAT)
    assert counts == [1, 1]
    assert budget([[0.9]], num_rows=2, num_tokens=2, max_nodes=0, step_time=FLAT) == [0]
    assert budget([], num_rows=0, num_tokens=0, max_nodes=5, step_time=FLAT) == []


@pytest.mark.parametrize("seed", range(20))
def test_equals_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    curve = StepTime(64, [(1, 0.01), (8, float(rng.uniform(0.01, 0.02))), (64, float(rng.uniform(0.02, 0.2)))])
    probabilities = [np.sort(rng.random(rng.integers(0, 6)))[::-1] for _ in range(3)]
    counts = budget(probabilities, num_rows=3, num_tokens=3, max_nodes=64, step_time=curve)

    def goodput(chosen: tuple[int, ...]) -> float:
        gain = sum(p[:count].sum() for p, count in zip(probabilities, chosen, strict=True))
        return float((3 + gain) / curve.seconds(3 + sum(chosen)))

    every = [tuple(c) for c in np.ndindex(*(len(p) + 1 for p in probabilities))]
    assert goodput(tuple(counts)) == pytest.approx(max(goodput(chosen) for chosen in every))
