"""Calibration: a drafter's claims are believed until the target has shown what they are worth."""

import numpy as np
import pytest

from specedge_verifier.calibration import Calibration, Calibrations


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
    before = float(calibration.probabilities(-0.1))
    for _ in range(5000):
        calibration.age()
    calibration.observe(np.array([-9.0]), np.array([False]))
    assert calibration.probabilities(-0.1) > 10 * before


def test_drafters_are_kept_apart_and_bounded() -> None:
    calibrations = Calibrations(max_drafters=2)
    first = calibrations.of("a")
    assert calibrations.of("b") is not first and calibrations.of("a") is first
    calibrations.of("c")  # makes room by forgetting b, unused longest
    assert calibrations.of("a") is first
