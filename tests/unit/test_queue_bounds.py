"""Who is let into the queue, who is not, and what they are told; over a picture of an engine."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from specedge.block_pool import BlockPool
from specedge.errors import CapacityExceeded, TenantLimit
from specedge.sampling import SamplingParams
from specedge.wire.messages import OpenSession
from specedge_verifier.forecast import Forecast, Running, Waiting
from specedge_verifier.queue_bounds import MAX_RETRY_AFTER_S, MIN_RETRY_AFTER_S, QueueBounds, QueueLimits
from specedge_verifier.session_quota import SessionQuota
from specedge_verifier.step_time import StepTime
from specedge_verifier.tenant_account import Tenant, TenantAccount

US = TenantAccount()
STEP_TIME = StepTime(64, [(1, 0.1), (64, 0.1)])


def opening(num_tokens: int = 10, priority: int = 0, num_committed: int = 0) -> OpenSession:
    committed = (1,) * num_committed
    return OpenSession("r", (1,) * num_tokens, committed, SamplingParams(max_tokens=100), "f", priority=priority)


def picture(
    running: Sequence[Running] = (), waiting: Sequence[Waiting] = (), max_running: int = 2, num_opened: int = 0
) -> Forecast:
    """Of an engine with steps of 0.1 s that compute 64 rows."""
    return Forecast(
        taken_s=0.0,
        num_opened=num_opened,
        max_running=max_running,
        max_rows=64,
        step_time=STEP_TIME,
        step_s=0.1,
        answer_s=10.0,
        running=running,
        waiting=waiting,
        num_free_blocks=100,
        weights={each.account: each.account.limits.weight for each in (*running, *waiting)},
    )


class Door:
    """A quota over a picture that a test changes."""

    def __init__(self, seen: Forecast, **limits: float) -> None:
        self.seen = seen
        self.now_s = 0.0
        values = {"max_sessions": 100, **limits}
        self.bounds = QueueBounds(QueueLimits(**values), lambda: self.seen, lambda: self.now_s)  # type: ignore[arg-type]
        self.quota = SessionQuota(self.bounds, BlockPool(100, 16))

    def enter(self, message: OpenSession, account: TenantAccount = US) -> None:
        self.quota.admit(message, account)
        self.quota.opened(message, account)

    def refuses(self, message: OpenSession, account: TenantAccount = US) -> CapacityExceeded:
        with pytest.raises(CapacityExceeded) as caught:
            self.quota.admit(message, account)
        return caught.value


FULL = (Running(4.0, 0, US), Running(6.0, 0, US))


def test_too_many_sessions_are_told_when_the_next_one_ends() -> None:
    door = Door(picture(FULL), max_sessions=3)
    for _ in range(3):
        door.enter(opening())
    error = door.refuses(opening())
    assert "3 sessions are running or waiting, the limit is 3" in str(error)
    assert error.retry_after_s == pytest.approx(1.2 * 4.0), "the first of the two that run, with a margin"
    door.quota.closed(US)
    door.enter(opening())


def test_tokens_that_wait_are_bounded_and_come_back_when_there_is_room() -> None:
    waiting = (Waiting(0, 300, US), Waiting(0, 300, US))
    door = Door(picture(FULL, waiting), max_queued_tokens=700)
    door.quota.admit(opening(100), US)
    error = door.refuses(opening(101))
    assert "600 tokens of prompts wait to be computed" in str(error) and "max_queued_tokens, 700" in str(error)
    assert error.retry_after_s == pytest.approx(1.2 * 4.0), "one of those that wait has a place by then"
    assert door.refuses(opening(500)).retry_after_s == pytest.approx(1.2 * 6.0), "both must have one"


def test_sessions_of_this_moment_count_before_the_engine_has_seen_them() -> None:
    door = Door(picture(), max_queued_tokens=100)
    door.enter(opening(60))
    door.refuses(opening(60))
    door.seen = picture(num_opened=1)  # it is in the picture now, and computed
    door.enter(opening(60))


def test_a_prompt_larger_than_the_queue_is_taken_where_nothing_waits() -> None:
    door = Door(picture(), max_queued_tokens=100, max_predicted_ttft_s=0.5)
    door.enter(opening(5000))
    assert "wait to be computed" in str(door.refuses(opening(1)))


def test_a_session_is_refused_by_its_predicted_ttft_and_told_when_it_is_short_enough() -> None:
    door = Door(picture(FULL), max_predicted_ttft_s=3.0)
    error = door.refuses(opening())
    assert "the first token would come in 4.1 s, and max_predicted_ttft_s is 3" in str(error)
    assert error.retry_after_s == pytest.approx(1.2 * 1.1)
    door.now_s = 1.15  # the picture is as old
    door.quota.admit(opening(), US)


def test_a_prompt_that_takes_long_by_itself_may_wait_as_long() -> None:
    door = Door(picture((Running(9.0, 640, US),)), max_predicted_ttft_s=0.5)
    door.refuses(opening(64))  # a second behind others, and 0.1 s by itself
    door.quota.admit(opening(6400), US)


def test_a_session_that_goes_on_is_bounded_by_the_number_of_sessions_only() -> None:
    door = Door(
        picture(FULL, [Waiting(0, 500, US)] * 4), max_queued_tokens=100, max_predicted_ttft_s=0.1, max_sessions=2
    )
    door.refuses(opening())
    for _ in range(2):
        door.enter(opening(num_committed=5))
    door.refuses(opening(num_committed=5))


def test_a_higher_priority_is_let_in_where_a_lower_one_is_refused() -> None:
    waiting = [Waiting(0, 10, US)] * 5
    by_ttft = Door(picture(FULL, waiting), max_predicted_ttft_s=5.0)
    by_ttft.refuses(opening())
    by_ttft.quota.admit(opening(priority=1), US)
    by_tokens = Door(picture(FULL, waiting), max_queued_tokens=55)
    by_tokens.refuses(opening())
    by_tokens.quota.admit(opening(priority=1), US)
    by_sessions = Door(picture(FULL, waiting), max_sessions=7, max_predicted_ttft_s=1e9)
    for _ in range(7):
        by_sessions.enter(opening(priority=-1))
    by_sessions.seen = replace(by_sessions.seen, num_opened=7)
    by_sessions.refuses(opening())
    for _ in range(5):
        by_sessions.enter(opening(priority=1))
    by_sessions.refuses(opening(priority=1))  # never more than twice the queue


def test_priority_overtakes_nobody_of_another_tenant() -> None:
    a, b = TenantAccount(Tenant("a")), TenantAccount(Tenant("b"))
    running = (Running(4.0, 0, a), Running(6.0, 0, b))
    waiting = [Waiting(0, 10, a)] * 3 + [Waiting(0, 10, b)] * 3
    door = Door(picture(running, waiting), max_predicted_ttft_s=12.0)
    door.refuses(opening(priority=0), a)
    door.quota.admit(opening(priority=1), a)
    flood = Door(picture(running, [Waiting(9, 10, a)] * 30 + [Waiting(0, 10, b)]), max_queued_tokens=320)
    flood.refuses(opening(priority=9), a)
    flood.quota.admit(opening(), b)


def test_a_flood_of_one_tenant_does_not_close_the_door_for_another() -> None:
    a, b = TenantAccount(Tenant("a")), TenantAccount(Tenant("b"))
    running = (Running(40.0, 0, a), Running(60.0, 0, a))
    flooded = picture(running, [Waiting(0, 1000, a)] * 50)
    for limits in ({"max_sessions": 52}, {"max_queued_tokens": 40_000}, {"max_predicted_ttft_s": 5.0}):
        door = Door(flooded, **limits)
        for _ in range(52):
            door.quota.opened(opening(), a)
        door.seen = replace(flooded, num_opened=52)
        door.refuses(opening(), a)
        door.quota.admit(opening(), b)


def test_a_tenant_at_its_own_limit_is_told_when_its_own_session_ends() -> None:
    a, b = TenantAccount(Tenant("a", max_sessions=1)), TenantAccount(Tenant("b"))
    door = Door(picture((Running(1.0, 0, b), Running(6.0, 0, a))))
    door.enter(opening(), a)
    error = door.refuses(opening(), a)
    assert isinstance(error, TenantLimit)
    assert error.retry_after_s == pytest.approx(1.2 * 6.0)


def test_what_is_told_is_bounded_both_ways() -> None:
    soon, late = (Running(1e-6, 0, US),), (Running(1e6, 0, US),)
    for running, told_s in ((soon, MIN_RETRY_AFTER_S), (late, MAX_RETRY_AFTER_S)):
        door = Door(picture(running, max_running=1), max_sessions=1, max_predicted_ttft_s=1e9)
        door.enter(opening())
        assert door.refuses(opening()).retry_after_s == told_s


def test_waiting_for_blocks_is_waiting_for_an_end() -> None:
    door = Door(replace(picture((Running(4.0, 0, US),)), num_free_blocks=3), max_predicted_ttft_s=1.0)
    door.quota.admit(opening(40), US)
    door.refuses(opening(60))


def test_a_refusal_tells_which_prompts_meet_the_same_bound() -> None:
    by_sessions = Door(picture(FULL), max_sessions=1)
    by_sessions.enter(opening())
    assert by_sessions.refuses(opening(50)).from_tokens == 1
    waiting = (Waiting(0, 300, US), Waiting(0, 300, US))
    by_tokens = Door(picture(FULL, waiting), max_queued_tokens=700)
    assert by_tokens.refuses(opening(500)).from_tokens == 101
    by_tokens.quota.admit(opening(100), US)
    assert by_tokens.refuses(opening(101)).from_tokens == 101
    assert Door(picture(FULL), max_predicted_ttft_s=3.0).refuses(opening(50)).from_tokens == 1
    by_ttft = Door(picture(FULL), max_predicted_ttft_s=5.0)
    by_ttft.quota.admit(opening(50), US)
    assert by_ttft.refuses(opening(700)).from_tokens == 700, "a small one is taken"


def test_a_tenants_share_of_the_queue_counts_in_what_a_refusal_tells() -> None:
    a, b = TenantAccount(Tenant("a")), TenantAccount(Tenant("b"))
    running = (Running(4.0, 0, a), Running(6.0, 0, b))
    door = Door(picture(running, [Waiting(0, 600, a), Waiting(0, 40, b)]), max_queued_tokens=200)
    door.quota.opened(opening(), a)
    door.seen = replace(door.seen, num_opened=1)
    assert door.refuses(opening(70), b).from_tokens == 61, "half of the queue is its own, less what waits"
    door.quota.admit(opening(60), b)
