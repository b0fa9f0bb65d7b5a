"""The waiting rules, case by case."""

import pytest

from specedge_verifier.waiting import RUN_ALL, BatchType, Decision, Readiness, decide

STALL_S = 1.0
WITHOUT_FILLING = Decision(run=True, fill=False)


def ready(num_ready: int, num_fillable: int, *, idle_s: float = 0.0, urgent: bool = False) -> Readiness:
    return Readiness(urgent, num_ready, num_fillable, idle_s)


@pytest.mark.parametrize("readiness", [ready(0, 3), ready(1, 7), ready(4, 0), ready(0, 1, urgent=True)])
def test_ready_never_waits_and_leaves_nobody_out(readiness: Readiness) -> None:
    assert decide(BatchType.READY, readiness, STALL_S) == RUN_ALL


@pytest.mark.parametrize("batch_type", BatchType)
def test_nobody_to_wait_for(batch_type: BatchType) -> None:
    assert decide(batch_type, ready(3, 0), STALL_S) == RUN_ALL


@pytest.mark.parametrize("batch_type", [BatchType.STATIC, BatchType.DYNAMIC])
def test_under_published_rules_urgent_work_runs_without_the_sessions_that_wait(batch_type: BatchType) -> None:
    assert decide(batch_type, ready(0, 2, urgent=True), STALL_S) == WITHOUT_FILLING


def test_published_rules_leave_sessions_without_drafts_waiting() -> None:
    assert decide(BatchType.DYNAMIC, ready(1, 2), STALL_S) == WITHOUT_FILLING
    assert not decide(BatchType.STATIC, ready(1, 2), STALL_S).run
    assert not decide(BatchType.DYNAMIC, ready(0, 1), STALL_S).run


@pytest.mark.parametrize("batch_type", [BatchType.STATIC, BatchType.DYNAMIC])
def test_published_rules_give_up_after_the_stall_limit(batch_type: BatchType) -> None:
    assert decide(batch_type, ready(0, 1, idle_s=1.0), STALL_S) == RUN_ALL
    assert decide(batch_type, ready(0, 1, idle_s=0.4), STALL_S).wait_s == pytest.approx(0.6)
