"""The waiting rules, case by case."""

from math import inf

import pytest

from specedge_verifier.step_time import StepTime
from specedge_verifier.waiting import RUN_ALL, BatchType, Readiness, decide, target_group_size

FLAT = StepTime(256, [(1, 0.030), (256, 0.030)])
STALL_S = 1.0


def ready(
    num_ready: int, *arrivals_s: float, gap_s: float = 0.0, idle_s: float = 0.0, urgent: bool = False
) -> Readiness:
    return Readiness(urgent, num_ready, tuple(arrivals_s), gap_s, idle_s)


def test_urgent_work_never_waits() -> None:
    assert decide(BatchType.READY, ready(0, 0.001, urgent=True), FLAT, STALL_S) == RUN_ALL


def test_nobody_to_wait_for() -> None:
    for batch_type in BatchType:
        assert decide(batch_type, ready(3), FLAT, STALL_S).run


def test_an_idle_device_waits_for_a_draft_that_comes_within_a_step() -> None:
    decision = decide(BatchType.READY, ready(0, 0.025, gap_s=0.025), FLAT, STALL_S)
    assert not decision.run and decision.wait_s == pytest.approx(0.030)
    soon = decide(BatchType.READY, ready(0, 0.005, gap_s=0.005), FLAT, STALL_S)
    assert not soon.run and soon.wait_s == pytest.approx(0.005 + 0.015)  # not much longer than predicted


def test_and_fills_when_it_comes_later_or_nobody_knows() -> None:
    for arrival_s in (0.031, 0.060, inf):
        assert decide(BatchType.READY, ready(0, arrival_s, gap_s=arrival_s), FLAT, STALL_S) == RUN_ALL


def test_patience_counts_from_when_the_device_became_free() -> None:
    assert decide(BatchType.READY, ready(0, 0.026, gap_s=0.030, idle_s=0.006), FLAT, STALL_S) == RUN_ALL
    assert not decide(BatchType.READY, ready(0, 0.022, gap_s=0.030, idle_s=0.006), FLAT, STALL_S).run


def test_a_ready_session_waits_for_its_group_only_while_that_pays() -> None:
    assert not decide(BatchType.READY, ready(1, 0.005, gap_s=0.005), FLAT, STALL_S).run
    assert decide(BatchType.READY, ready(1, 0.020, gap_s=0.020), FLAT, STALL_S) == RUN_ALL


def test_group_size_balances_step_and_gap() -> None:
    assert target_group_size(ready(4, *[0.0] * 4, gap_s=0.0), FLAT) == 8  # no gap: one group of all
    assert target_group_size(ready(4, *[0.0] * 4, gap_s=inf), FLAT) == 1  # unknown: wait for nobody
    linear = StepTime(256, [(1, 0.010), (256, 2.56)])
    # one group: 80 + 80 ms; two of 4: max(2 x 40, 40 + 80) = 120 ms; four of 2: max(80, 20 + 80) = 100 ms; eight: 90 ms
    assert target_group_size(ready(4, *[0.0] * 4, gap_s=0.080), linear) == 1


def test_published_rules_leave_sessions_without_drafts_waiting() -> None:
    some = ready(1, inf, inf)
    assert (
        decide(BatchType.DYNAMIC, some, FLAT, STALL_S).run and not decide(BatchType.DYNAMIC, some, FLAT, STALL_S).fill
    )
    assert not decide(BatchType.STATIC, some, FLAT, STALL_S).run
    assert not decide(BatchType.DYNAMIC, ready(0, inf), FLAT, STALL_S).run


def test_published_rules_give_up_after_the_stall_limit() -> None:
    for batch_type in (BatchType.STATIC, BatchType.DYNAMIC):
        assert decide(batch_type, ready(0, inf, idle_s=1.0), FLAT, STALL_S) == RUN_ALL
        assert decide(batch_type, ready(0, inf, idle_s=0.4), FLAT, STALL_S).wait_s == pytest.approx(0.6)
