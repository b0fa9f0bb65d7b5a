"""Calibration: a drafter's claims are believed until the target has shown what they are worth."""

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest

from specedge_verifier.calibration import Calibrations, non_increasing


class Calibration:
    """One drafter's share of the calibrations."""

    def __init__(self, drafter_id: str = "edge", calibrations: Calibrations | None = None) -> None:
        self.drafter_id = drafter_id
        self.calibrations = calibrations or Calibrations()

    def probabilities(self, scores: npt.ArrayLike) -> np.ndarray:
        values = np.atleast_1d(np.asarray(scores, dtype=np.float64))
        return self.calibrations.probabilities([self.drafter_id], [len(values)], values)

    def observe(self, scores: np.ndarray, accepted: npt.ArrayLike) -> None:
        self.calibrations.observe([self.drafter_id], [len(scores)], scores, accepted)

    def age(self) -> None:
        self.calibrations.age()


def test_a_new_drafter_is_taken_at_its_word() -> None:
    probabilities = Calibration().probabilities(np.array([-0.25, -1.25, -4.25]))
    assert probabilities == pytest.approx(np.exp([-0.25, -1.25, -4.25]), rel=0.05)
    assert Calibration().probabilities(-40.0) < 1e-4


def test_an_overconfident_drafter_is_found_out() -> None:
    calibration = Calibration()
    for _ in range(50):
        calibration.observe(np.full(10, -0.1), np.zeros(10, dtype=bool))
    assert calibration.probabilities(-0.1) < 0.05


def test_a_modest_drafter_is_found_out() -> None:
    calibration = Calibration()
    rng = np.random.default_rng(0)
    for _ in range(100):
        calibration.observe(np.full(10, -2.1), rng.random(10) < 0.6)
        calibration.observe(np.full(10, -0.1), rng.random(10) < 0.9)
        calibration.observe(np.full(10, -1.1), rng.random(10) < 0.7)
    assert calibration.probabilities(-2.1) == pytest.approx(0.6, abs=0.1)


def test_more_probable_by_its_own_account_never_counts_less() -> None:
    calibration = Calibration()
    rng = np.random.default_rng(1)
    for _ in range(200):
        scores = -rng.exponential(2.0, 20)
        calibration.observe(scores, rng.random(20) < rng.random())
    curve = calibration.probabilities(np.linspace(0, -14, 500))
    assert (np.diff(curve) <= 1e-12).all()


def test_a_worthless_drafter_is_tried_again_in_time() -> None:
    calibration = Calibration()
    calibration.observe(np.full(400, -0.1), np.zeros(400, dtype=bool))
    before = float(calibration.probabilities(-0.1)[0])
    for _ in range(5000):
        calibration.age()
    calibration.observe(np.array([-9.0]), np.array([False]))
    assert calibration.probabilities(-0.1) > 10 * before


def test_drafters_of_one_step_learn_apart() -> None:
    calibrations = Calibrations()
    scores = np.array([-0.1, -1.1, -0.1])
    for _ in range(50):
        calibrations.observe(["good", "bad", "good"], [1, 1, 1], scores, [True, False, True])
    both = calibrations.probabilities(["bad", "good", "bad"], [1, 2, 1], np.array([-1.1, -0.1, -5.0, -0.1]))
    assert both[0] < 0.3 and both[1] > 0.9 and both[1] > both[2] > both[0] * 1e-3
    alone = Calibration("good", calibrations).probabilities([-0.1, -5.0])
    assert both[1:3].tolist() == alone.tolist()


def test_between_centres_of_bins_the_curve_is_straight() -> None:
    calibration = Calibration()
    left, middle, right = calibration.probabilities([-0.25, -0.5, -0.75])
    assert (left, right) == pytest.approx((np.exp(-0.25), np.exp(-0.75)))
    assert middle == pytest.approx((left + right) / 2)
    assert calibration.probabilities([0.0, -0.1]).tolist() == [left, left]
    assert calibration.probabilities([-11.75, -80.0]) == pytest.approx([np.exp(-11.75)] * 2)


def test_pooling_by_hand() -> None:
    values, weights = np.array([[0.5, 0.8, 0.1, 0.3]]), np.array([[1.0, 2.0, 1.0, 3.0]])
    assert non_increasing(values, weights)[0] == pytest.approx([0.7, 0.7, 0.25, 0.25])


def test_pooling_equals_adjacent_violators() -> None:
    rng = np.random.default_rng(3)
    values, weights = rng.random((40, 12)), rng.uniform(8, 400, (40, 12))
    values[:5] = np.sort(values[:5])[:, ::-1]
    pooled = non_increasing(values, weights)
    assert (pooled[:5] == values[:5]).all(), "what is in order is left alone"
    assert (np.diff(pooled) <= 0).all()
    for row, expected in enumerate(adjacent_violators(v, w) for v, w in zip(values, weights, strict=True)):
        assert pooled[row] == pytest.approx(expected)


def adjacent_violators(values: np.ndarray, weights: np.ndarray) -> list[float]:
    pools: list[list[Fraction]] = []  # weighted sum, weight, length
    for value, weight in zip(map(Fraction, values), map(Fraction, weights), strict=True):
        pools.append([value * weight, weight, Fraction(1)])
        while len(pools) > 1 and pools[-2][0] * pools[-1][1] < pools[-1][0] * pools[-2][1]:
            last = pools.pop()
            pools[-1] = [one + other for one, other in zip(pools[-1], last, strict=True)]
    return [float(total / weight) for total, weight, length in pools for _ in range(int(length))]


def test_a_drafter_that_makes_room_leaves_nothing_behind() -> None:
    calibrations = Calibrations(max_drafters=1)
    for _ in range(50):
        calibrations.observe(["old"], [1], np.array([-0.1]), [False])
    assert calibrations.probabilities(["new"], [1], np.array([-0.25])) == pytest.approx(np.exp(-0.25))


def test_drafters_are_kept_apart_and_bounded() -> None:
    calibrations = Calibrations(max_drafters=2)
    first = calibrations.of("a")
    assert calibrations.of("b") is not first and calibrations.of("a") is first
    calibrations.of("c")  # makes room by forgetting b, unused longest
    assert calibrations.of("a") is first
