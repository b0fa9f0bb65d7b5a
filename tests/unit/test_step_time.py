"""The step time curve: starts from warm-up samples, learns, and never says that more rows cost less."""

import numpy as np
import pytest

from specedge_verifier.step_time import StepTime


def rows(*counts: int) -> np.ndarray:
    return np.array(counts, dtype=np.int64)


def test_starts_from_the_samples() -> None:
    curve = StepTime(1024, [(1, 0.010), (32, 0.010), (128, 0.016)])
    assert curve.seconds(1) == pytest.approx(0.010)
    assert curve.seconds(32) == pytest.approx(0.010)
    assert curve.predict(rows(80)) == pytest.approx(0.013)


def test_beyond_the_samples_time_grows_in_proportion() -> None:
    assert StepTime(1024, [(1, 0.010), (128, 0.016)]).seconds(512) == pytest.approx(0.064)


def test_learns_a_device_that_got_slower() -> None:
    curve = StepTime(64, [(1, 0.010), (64, 0.020)])
    for _ in range(200):
        for count in (1, 5, 16, 40, 64):
            curve.observe(count, 2 * (0.010 + count * 0.010 / 64))
    for count in (1, 16, 64):
        assert curve.seconds(count) == pytest.approx(2 * (0.010 + count * 0.010 / 64), rel=0.05)


def test_one_outlier_moves_little() -> None:
    curve = StepTime(64, [(1, 0.010), (64, 0.010)])
    curve.observe(1, 5.0)
    assert curve.seconds(1) <= 0.0111


def test_stays_monotone_whatever_is_observed() -> None:
    curve = StepTime(256, [(1, 0.010), (256, 0.050)])
    rng = np.random.default_rng(0)
    for _ in range(500):
        curve.observe(int(rng.integers(1, 256)), float(rng.uniform(0.001, 0.1)))
    predicted = curve.predict(np.arange(1, 257))
    assert (np.diff(predicted) >= 0).all() and predicted[0] > 0


def test_a_knot_is_never_nothing() -> None:
    curve = StepTime(64, [(1, 0.001), (32, 0.001), (64, 0.9)])
    for _ in range(300):
        curve.observe(48, 1e-5)
    assert 0 < curve.seconds(32) <= curve.seconds(48) <= 0.001


def test_needs_a_sample() -> None:
    with pytest.raises(ValueError, match="at least one"):
        StepTime(64, [])


def test_a_size_that_was_slow_once_is_tried_again_and_learnt_anew() -> None:
    curve = StepTime(64, [(1, 0.010), (8, 0.010), (16, 0.080), (64, 0.300)])
    num_tried = 0
    for _ in range(4096):
        due = curve.due_rows(8)
        num_tried += due == 16
        curve.observe(due, 0.010)
    assert num_tried == 31
    assert curve.seconds(16) == pytest.approx(0.010, rel=0.01)


def test_what_is_not_observed_stays_as_it_was() -> None:
    curve = StepTime(64, [(1, 0.010), (64, 0.030)])
    before = curve.seconds(64)
    rng = np.random.default_rng(1)
    for _ in range(20_000):
        curve.observe(int(rng.choice([1, 7, 8, 12, 16])), float(rng.lognormal(-4.5, 1.0)))
    assert curve.seconds(64) == pytest.approx(before) or curve.seconds(64) == pytest.approx(curve.seconds(16))


def test_a_size_that_runs_anyway_or_does_not_exist_is_never_due() -> None:
    curve = StepTime(16, [(1, 0.010)])
    for _ in range(600):
        assert curve.due_rows(8) == 8 and curve.due_rows(16) == 16
        curve.observe(8, 0.010)
        curve.observe(16, 0.010)
