"""What the verifier's metrics count, and the names under which vLLM's tools find them."""

import grpc
import pytest

from specedge.block_pool import BlockPool
from specedge_verifier.metrics import VerifierMetrics
from specedge_verifier.scheduler import Scheduler, SchedulerLimits
from specedge_verifier.step_report import StepReport
from specedge_verifier.step_time import StepTime

OWN = "specedge_verifier_"


def verifier_metrics() -> tuple[VerifierMetrics, Scheduler]:
    limits = SchedulerLimits(max_batch_size=4, max_num_batched_tokens=64, max_tree_nodes=16)
    scheduler = Scheduler(BlockPool(8, 16), limits, StepTime(64, [(1, 0.01)]))
    return VerifierMetrics("demo", scheduler), scheduler


def stepped() -> VerifierMetrics:
    metrics, _ = verifier_metrics()
    report = StepReport(
        num_sessions=3,
        num_prefill=10,
        num_nodes=7,
        num_accepted=3,
        num_committed=5,
        num_moved=1,
        schedule_s=0.001,
        forward_s=0.02,
        sample_s=0.003,
        settle_s=0.001,
        accepted_depths=[2, 1],
        queue_s=[0.0, 0.5],
        admission_s=[0.7],
        nodes_by_depth=[4, 2, 1],
        num_drafted_next=1,
        num_bare_next=2,
    )
    metrics.step(report)
    return metrics


def value(metrics: VerifierMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_a_step_is_booked() -> None:
    metrics = stepped()
    assert value(metrics, f"{OWN}step_seconds_sum", phase="all") == pytest.approx(0.025)
    assert [value(metrics, f"{OWN}rows_total", kind=kind) for kind in ("prefill", "root", "draft")] == [10, 2, 7]
    assert value(metrics, f"{OWN}step_rows_sum") == 19
    assert value(metrics, f"{OWN}committed_tokens_total") == 5
    assert value(metrics, f"{OWN}queue_seconds_sum") == 0.5
    assert value(metrics, f"{OWN}admission_seconds_sum") == 0.7
    assert [value(metrics, f"{OWN}verdicts_total", next=name) for name in ("drafted", "bare")] == [1, 2]


def test_acceptance_is_counted_by_depth() -> None:
    metrics = stepped()
    depths = ("1", "2", "3", "4")
    verified = [value(metrics, f"{OWN}verified_draft_nodes_by_depth_total", depth=depth) for depth in depths]
    accepted = [value(metrics, f"{OWN}accepted_draft_nodes_by_depth_total", depth=depth) for depth in depths]
    assert (verified, accepted) == ([4, 2, 1, 0], [2, 1, 0, 0])
    assert value(metrics, f"{OWN}verifications_total") == 2


def test_deep_nodes_share_the_last_label() -> None:
    metrics, _ = verifier_metrics()
    report = StepReport(1, 0, 40, 40, 41, 0, 0.0, 0.0, 0.0, 0.0, accepted_depths=[40], nodes_by_depth=[1] * 40)
    metrics.step(report)
    assert value(metrics, f"{OWN}accepted_draft_nodes_by_depth_total", depth="32") == 9
    assert value(metrics, f"{OWN}verified_draft_nodes_by_depth_total", depth="32") == 9
    assert value(metrics, f"{OWN}verified_draft_nodes_by_depth_total", depth="33") is None


def test_vllms_names_show_the_same_values() -> None:
    metrics = stepped()
    labels = {"engine": "0", "model_name": "demo"}
    for name, expected in (
        ("prompt_tokens_total", 10),
        ("generation_tokens_total", 5),
        ("spec_decode_num_drafts_total", 2),
        ("spec_decode_num_draft_tokens_total", 7),
        ("spec_decode_num_accepted_tokens_total", 3),
        ("request_queue_time_seconds_count", 1),
    ):
        assert value(metrics, f"vllm:{name}", **labels) == expected, name
    per_position = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
    assert [value(metrics, per_position, position=position, **labels) for position in ("0", "1", "2")] == [2, 1, 0]


def test_the_pool_and_the_queue_are_read_when_scraped() -> None:
    metrics, scheduler = verifier_metrics()
    scheduler.pool.allocate(2)
    scheduler.num_preemptions = 3
    assert [value(metrics, f"{OWN}kv_blocks", state=state) for state in ("held", "free")] == [2, 6]
    assert value(metrics, f"{OWN}kv_usage_ratio") == 0.25
    assert value(metrics, f"{OWN}preemptions_total") == 3
    assert value(metrics, "vllm:kv_cache_usage_perc", engine="0", model_name="demo") == 0.25


def test_refusals_are_there_before_the_first_one() -> None:
    metrics, _ = verifier_metrics()
    for status in grpc.StatusCode:
        expected = None if status is grpc.StatusCode.OK else 0
        assert value(metrics, f"{OWN}rejected_sessions_total", reason=status.name) == expected
    metrics.rejected("RESOURCE_EXHAUSTED")
    assert value(metrics, f"{OWN}rejected_sessions_total", reason="RESOURCE_EXHAUSTED") == 1


def test_a_price_is_shown_once_it_is_known() -> None:
    metrics, _ = verifier_metrics()
    metrics.costs(None)
    assert value(metrics, f"{OWN}price_dollars_per_second") is None
    metrics.costs(7.2)
    assert value(metrics, f"{OWN}price_dollars_per_second") == pytest.approx(0.002)
