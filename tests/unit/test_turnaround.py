"""When there is room among requests that run."""

import pytest

from edge_agent.http.turnaround import MAX_RETRY_AFTER_S, MIN_RETRY_AFTER_S, Turnaround


def test_many_that_run_end_sooner_than_one() -> None:
    turnaround = Turnaround()
    for _ in range(10):
        turnaround.ended(20.0)
    assert turnaround.next_end_s(1) == pytest.approx(20)
    assert turnaround.next_end_s(10) == pytest.approx(2)


def test_it_follows_what_requests_take_and_stays_within_bounds() -> None:
    turnaround = Turnaround()
    assert MIN_RETRY_AFTER_S <= turnaround.next_end_s(4) <= MAX_RETRY_AFTER_S
    turnaround.ended(1000.0)
    assert turnaround.next_end_s(1) == MAX_RETRY_AFTER_S
    for _ in range(200):
        turnaround.ended(0.001)
    assert turnaround.next_end_s(1) == MIN_RETRY_AFTER_S
