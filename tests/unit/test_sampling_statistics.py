"""The sampler draws from the distribution it promises: chi-square tests with fixed seeds."""

from math import sqrt

import numpy as np
import pytest
import torch

from specedge.row_group import RowGroup
from specedge.sampler import Sampler
from specedge.sampling import SamplingParams

torch.set_num_threads(1)

NUM_TOKENS = 50
NUM_DRAWS = 20_000
LOGITS = np.random.default_rng(50).permutation(np.linspace(0.0, -5.0, NUM_TOKENS)).astype(np.float32)
NORMAL_QUANTILE_999 = 3.0902


def critical_value(degrees_of_freedom: int) -> float:
    """The 99.9 % quantile of the chi-square distribution, by the Wilson-Hilferty approximation."""
    spread = 2 / (9 * degrees_of_freedom)
    return degrees_of_freedom * (1 - spread + NORMAL_QUANTILE_999 * sqrt(spread)) ** 3


def chi_square(observed: np.ndarray, probabilities: np.ndarray) -> float:
    """Pearson's statistic; tokens that can not be drawn must not have been."""
    is_possible = probabilities > 0
    assert observed[~is_possible].sum() == 0
    expected = observed.sum() * probabilities[is_possible]
    assert expected.min() >= 5, "the chi-square approximation needs this many draws of every token"
    return float(((observed[is_possible] - expected) ** 2 / expected).sum())


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def draws_over_seeds(**values: float) -> np.ndarray:
    groups = [
        RowGroup(SamplingParams(seed=seed, **values), np.array([7]), (), 0)  # type: ignore[arg-type]
        for seed in range(NUM_DRAWS)
    ]
    logits = torch.from_numpy(LOGITS).expand(NUM_DRAWS, NUM_TOKENS)
    return Sampler(NUM_TOKENS, "cpu").choose(logits, groups)


def draws_over_positions(seed: int, num_draws: int) -> np.ndarray:
    group = RowGroup(SamplingParams(seed=seed), np.arange(num_draws), (), 0)
    return Sampler(NUM_TOKENS, "cpu").choose(torch.from_numpy(LOGITS).expand(num_draws, NUM_TOKENS), [group])


def test_the_critical_value_is_the_tabulated_one() -> None:
    assert critical_value(10) == pytest.approx(29.588, rel=1e-2)
    assert critical_value(49) == pytest.approx(85.351, rel=1e-2)


def test_draws_over_seeds_match_the_softmax() -> None:
    counts = np.bincount(draws_over_seeds(), minlength=NUM_TOKENS)
    assert chi_square(counts, softmax(LOGITS)) < critical_value(NUM_TOKENS - 1)


def test_draws_over_positions_match_the_softmax() -> None:
    counts = np.bincount(draws_over_positions(3, NUM_DRAWS), minlength=NUM_TOKENS)
    assert chi_square(counts, softmax(LOGITS)) < critical_value(NUM_TOKENS - 1)


def test_a_slightly_wrong_distribution_is_noticed() -> None:
    counts = np.bincount(draws_over_seeds(temperature=0.9), minlength=NUM_TOKENS)
    assert chi_square(counts, softmax(LOGITS)) > critical_value(NUM_TOKENS - 1)
    assert chi_square(counts, softmax(LOGITS / 0.9)) < critical_value(NUM_TOKENS - 1)


@pytest.mark.parametrize(
    ("values", "num_kept"),
    [({"top_k": 12}, 12), ({"top_p": 0.8}, 16), ({"min_p": 0.1}, 23), ({"temperature": 0.85}, 50)],
)
def test_filtered_draws_match_the_renormalised_softmax(values: dict[str, float], num_kept: int) -> None:
    scaled = LOGITS / values.get("temperature", 1.0)
    scaled[np.argsort(-LOGITS)[num_kept:]] = -np.inf
    counts = np.bincount(draws_over_seeds(**values), minlength=NUM_TOKENS)
    assert chi_square(counts, softmax(scaled)) < critical_value(num_kept - 1)


def test_neighbouring_positions_and_neighbouring_seeds_are_independent() -> None:
    """Pairs of draws, each binned into the six most likely tokens and the rest, fill a table like independent ones."""
    best = np.argsort(-LOGITS)[:6]
    bin_of = np.full(NUM_TOKENS, 6)
    bin_of[best] = np.arange(6)
    bin_probabilities = np.bincount(bin_of, weights=softmax(LOGITS))
    pair_probabilities = np.outer(bin_probabilities, bin_probabilities).ravel()
    for first, second in (
        (draws_over_positions(3, NUM_DRAWS)[::2], draws_over_positions(3, NUM_DRAWS)[1::2]),
        (draws_over_seeds()[::2], draws_over_seeds()[1::2]),
        (draws_over_positions(3, NUM_DRAWS), draws_over_positions(4, NUM_DRAWS)),
        (draws_over_positions(3, NUM_DRAWS + 1)[1:], draws_over_positions(4, NUM_DRAWS)),
    ):
        pairs = np.bincount(bin_of[first] * 7 + bin_of[second], minlength=49)
        assert chi_square(pairs, pair_probabilities) < critical_value(48)
