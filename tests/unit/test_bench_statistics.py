"""The bench's statistics against values computed by hand."""

import math

import pytest

from specedge_bench.statistics import (
    geometric_ratio,
    mean_interval,
    percentile,
    percentiles,
    ratio_p_value,
    sign_flip_p_value,
)


@pytest.mark.parametrize(
    ("percent", "wanted"), [(1, 10.0), (20, 10.0), (21, 20.0), (50, 30.0), (80, 40.0), (95, 50.0), (100, 50.0)]
)
def test_percentile_is_the_nearest_rank(percent: float, wanted: float) -> None:
    assert percentile([50.0, 10.0, 40.0, 20.0, 30.0], percent) == wanted


def test_percentile_of_twenty_and_a_hundred_samples() -> None:
    assert percentile([float(value) for value in range(1, 21)], 95) == 19.0
    hundred = percentiles([float(value) for value in range(100, 0, -1)])
    assert (hundred.p50, hundred.p95, hundred.p99, hundred.mean) == (50.0, 95.0, 99.0, 50.5)


def test_percentiles_leave_nan_out_and_know_emptiness() -> None:
    assert percentiles([math.nan, 2.0]).num_samples == 1
    empty = percentiles([])
    assert empty.num_samples == 0
    assert math.isnan(empty.p99)


def test_interval_of_equal_samples_is_a_point() -> None:
    interval = mean_interval([3.0, 3.0, 3.0])
    assert (interval.mean, interval.low, interval.high) == (3.0, 3.0, 3.0)


def test_interval_of_two_samples_spans_them() -> None:
    # A resample is both low with probability 1/4, which is more than the 2.5 % tail, and the same on the other side.
    interval = mean_interval([1.0, 3.0])
    assert (interval.mean, interval.low, interval.high) == (2.0, 1.0, 3.0)


def test_interval_repeats_by_seed_and_narrows_with_samples() -> None:
    few = mean_interval([0.0, 1.0] * 4, seed=5)
    many = mean_interval([0.0, 1.0] * 100, seed=5)
    assert few == mean_interval([0.0, 1.0] * 4, seed=5)
    assert many.high - many.low < few.high - few.low
    # Normal approximation: 0.5 +- 1.96 * 0.5 / sqrt(200).
    assert many.low == pytest.approx(0.5 - 0.0693, abs=0.01)
    assert many.high == pytest.approx(0.5 + 0.0693, abs=0.01)


def test_one_sample_has_no_interval() -> None:
    interval = mean_interval([4.0])
    assert interval.mean == 4.0
    assert math.isnan(interval.low)


def test_geometric_ratio_by_hand() -> None:
    # Ratios 2 and 8: their geometric mean is 4; a pair with a zero or NaN says nothing.
    ratio = geometric_ratio([1.0, 1.0, 0.0, 1.0], [2.0, 8.0, 5.0, math.nan])
    assert ratio.mean == pytest.approx(4.0)
    assert ratio.low == pytest.approx(2.0)
    assert ratio.high == pytest.approx(8.0)


def test_sign_flips_by_hand() -> None:
    # |mean| of 1, 2, 3 is 2; of the 8 sign patterns only +++ and --- reach it.
    assert sign_flip_p_value([1.0, 2.0, 3.0]) == 2 / 8
    # |mean| of 3, -1, 1 is 1; sums of +-3 +-1 +-1 are 5, 3, 3, 1 and their negatives: six reach 3.
    assert sign_flip_p_value([3.0, -1.0, 1.0]) == 6 / 8
    assert sign_flip_p_value([0.0, 0.0]) == 1.0
    assert sign_flip_p_value([0.1] * 6) == 2 / 64
    assert math.isnan(sign_flip_p_value([]))


def test_sampled_sign_flips_agree_with_the_truth() -> None:
    assert sign_flip_p_value([1.0] * 20) == 1 / 10_001
    assert sign_flip_p_value([1.0, -1.0] * 10) == 1.0
    assert sign_flip_p_value([1.0] * 20, seed=1) == sign_flip_p_value([1.0] * 20, seed=1)


def test_ratio_p_value_is_symmetric() -> None:
    first, second = [1.0, 2.0, 4.0], [2.0, 3.0, 9.0]
    assert ratio_p_value(first, second) == ratio_p_value(second, first) == 0.25
