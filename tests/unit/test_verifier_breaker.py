"""A verifier's breaker, with a clock that only the test moves."""

import random

import pytest

from edge_agent.verifier_breaker import FIRST_PAUSE_S, FORGET_S, MAX_FAILURES, MAX_PAUSE_S, TRIAL_S, Breaker, Kind


def tripped(kind: Kind, now_s: float = 100.0) -> Breaker:
    breaker = Breaker(random.Random(1))
    for _ in range(MAX_FAILURES):
        breaker.failed(kind, now_s)
    return breaker


@pytest.mark.parametrize("kind", ["ping", "stream"])
def test_it_opens_after_failures_in_a_row_and_half_opens_after_a_pause(kind: Kind) -> None:
    breaker = Breaker(random.Random(1))
    for _ in range(MAX_FAILURES - 1):
        breaker.failed(kind, 100.0)
        assert breaker.state(100.0) == "closed" and breaker.is_doubtful
    breaker.failed(kind, 100.0)
    assert breaker.state(100.0) == "open"
    assert 100.0 + FIRST_PAUSE_S / 2 <= breaker.retry_s <= 100.0 + FIRST_PAUSE_S
    assert breaker.state(breaker.retry_s) == "half_open"


def test_one_success_in_between_begins_the_count_again() -> None:
    breaker = Breaker()
    for _ in range(5):
        for _ in range(MAX_FAILURES - 1):
            breaker.failed("stream", 100.0)
        breaker.opened()
    assert breaker.state(100.0) == "closed" and not breaker.is_doubtful


def test_failures_while_it_is_open_do_not_lengthen_the_pause() -> None:
    breaker = tripped("stream")
    retry_s = breaker.retry_s
    for _ in range(50):  # the other sessions that were there
        breaker.failed("stream", 100.1)
    assert breaker.retry_s == retry_s


def test_pauses_grow_up_to_the_longest() -> None:
    breaker, pauses_s, now_s = tripped("ping"), [], 0.0
    for _ in range(10):
        now_s = breaker.retry_s
        breaker.failed("ping", now_s)
        pauses_s.append(breaker.retry_s - now_s)
    assert all(FIRST_PAUSE_S <= pause_s <= MAX_PAUSE_S for pause_s in pauses_s)
    assert pauses_s[-1] >= MAX_PAUSE_S / 2


def test_one_session_at_a_time_tries_a_half_open_one() -> None:
    breaker = tripped("stream")
    now_s = breaker.retry_s
    breaker.try_out(now_s)
    assert breaker.state(now_s) == "open", "nobody else tries"
    assert breaker.state(now_s + TRIAL_S) == "half_open", "a trial that nobody hears of ends"
    breaker.failed("stream", now_s + 1.0)
    assert now_s + 1.0 + FIRST_PAUSE_S <= breaker.retry_s <= now_s + 1.0 + 2 * FIRST_PAUSE_S
    breaker.try_out(breaker.retry_s)
    breaker.opened()
    assert breaker.state(breaker.retry_s) == "closed"


def test_answered_pings_close_what_unanswered_ones_opened_but_not_what_broken_streams_did() -> None:
    for kind, state in (("ping", "closed"), ("stream", "half_open")):
        breaker = tripped(kind)  # type: ignore[arg-type]
        now_s = breaker.retry_s
        breaker.answered(now_s)
        assert breaker.state(now_s) == state


def test_a_few_old_failures_are_forgotten_while_pings_are_answered() -> None:
    breaker = Breaker()
    breaker.failed("stream", 100.0)
    breaker.answered(100.0 + FORGET_S / 2)
    assert breaker.is_doubtful
    breaker.answered(101.0 + FORGET_S)
    assert not breaker.is_doubtful
