"""The statistics of the bench: percentiles, bootstrap confidence intervals and a paired permutation test.

Everything that draws takes its own seed, so a report made twice from the same rows is the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 10_000
# Up to this many pairs all sign patterns are counted, so the p-value is exact.
MAX_EXACT_PAIRS = 12


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the two ends of its confidence interval; the ends are NaN for fewer than two samples."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Percentiles:
    """The middle and the tail of a sample, and its size; all NaN for an empty one."""

    p50: float
    p95: float
    p99: float
    mean: float
    num_samples: int


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least `percent` percent of the samples do not exceed (nearest rank).

    A value that was really measured, never one between two. NaN for no samples.

    Args:
        samples: finite numbers in any order.
        percent: above 0, at most 100.
    """
    return _ranked(sorted(samples), percent)


def _ranked(ordered: Sequence[float], percent: float) -> float:
    if not ordered:
        return math.nan
    # 1e-9 keeps a product such as 0.95 * 20 = 19.000000000000004 from reaching for the next rank.
    return ordered[max(1, math.ceil(percent * len(ordered) / 100 - 1e-9)) - 1]


def percentiles(samples: Sequence[float]) -> Percentiles:
    """p50, p95, p99 and the mean; NaN samples (a request that never had a token) are left out."""
    ordered = sorted(sample for sample in samples if not math.isnan(sample))
    mean = math.fsum(ordered) / len(ordered) if ordered else math.nan
    return Percentiles(_ranked(ordered, 50), _ranked(ordered, 95), _ranked(ordered, 99), mean, len(ordered))


def mean_interval(samples: Sequence[float], seed: int = 0, confidence: float = 0.95) -> Interval:
    """Percentile-bootstrap confidence interval of the mean.

    Args:
        samples: one number per repetition or pair; NaN are left out.
        seed: of the resampling.
        confidence: between 0 and 1.
    """
    kept = np.array([sample for sample in samples if not math.isnan(sample)], dtype=np.float64)
    if kept.size == 0:
        return Interval(math.nan, math.nan, math.nan)
    mean = float(kept.mean())
    if kept.size == 1:
        return Interval(mean, math.nan, math.nan)
    chosen = np.random.default_rng(seed).integers(0, kept.size, size=(NUM_RESAMPLES, kept.size))
    means = kept[chosen].mean(axis=1)  # [resamples]
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, float(low), float(high))


def geometric_ratio(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Interval:
    """Geometric mean of the paired ratios `second[i] / first[i]` with its confidence interval.

    Pairs with a value that is not finite and positive are left out.
    """
    interval = mean_interval(_log_ratios(first, second), seed)
    return Interval(math.exp(interval.mean), math.exp(interval.low), math.exp(interval.high))


def _log_ratios(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [math.log(b / a) for a, b in zip(first, second, strict=True) if 0 < a < math.inf and 0 < b < math.inf]


def ratio_p_value(first: Sequence[float], second: Sequence[float], seed: int = 0) -> float:
    """Two-sided p-value of "the paired ratios are 1", by sign flips of their logarithms."""
    return sign_flip_p_value(_log_ratios(first, second), seed)


def sign_flip_p_value(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided p-value of "the paired differences are symmetric around 0", by flipping their signs.

    Exact up to 12 pairs; beyond, 10,000 random sign patterns plus the observed one. With n pairs no value
    below 2 / 2^n can come out. NaN for no pairs.
    """
    values = np.array([value for value in differences if not math.isnan(value)], dtype=np.float64)
    if values.size == 0:
        return math.nan
    observed = abs(float(values.mean()))
    if values.size <= MAX_EXACT_PAIRS:
        patterns = np.arange(2**values.size)[:, None] >> np.arange(values.size)
        signs = 1 - 2 * (patterns & 1)  # [patterns, pairs]
        extra = 0
    else:
        signs = np.random.default_rng(seed).choice((-1, 1), size=(NUM_RESAMPLES, values.size))
        extra = 1
    means = np.abs((signs * values).mean(axis=1))
    # Sums in another order differ in the last bits; such a pattern is as extreme as the observed one.
    num_extreme = int(np.count_nonzero(means >= observed * (1 - 1e-9))) + extra
    return num_extreme / (len(signs) + extra)
