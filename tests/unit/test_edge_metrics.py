"""What the edge's metrics count, and the names under which vLLM's tools find them."""

import asyncio
from collections import Counter

import pytest
from prometheus_client import generate_latest

from edge_agent.answer_meter import AnswerMeter
from edge_agent.metrics import EdgeMetrics, Slo
from edge_agent.stream_metrics import StreamMetrics
from edge_agent.stream_observer import StreamObserver
from specedge.block_pool import BlockPool
from specedge.drafting.draft_metrics import DraftMetrics, LookupMetrics
from specedge.drafting.draft_stats import DrafterStats, LookupStats, StepReport
from specedge.wire.messages import SessionOpened, Verdict

OWN = "specedge_edge_"


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def value(metrics: EdgeMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def vllm(metrics: EdgeMetrics, name: str, **labels: str) -> float | None:
    return value(metrics, f"vllm:{name}", engine="0", model_name="demo", **labels)


def meter(metrics: EdgeMetrics, clock: Clock) -> AnswerMeter:
    return AnswerMeter(metrics, arrived_s=99.0, num_prompt_tokens=7, clock=clock)


def test_an_answer_is_timed_from_its_arrival_and_between_its_bursts() -> None:
    metrics, clock = EdgeMetrics(lambda: "demo"), Clock()
    with meter(metrics, clock) as answer:
        assert (value(metrics, f"{OWN}requests_waiting"), value(metrics, f"{OWN}requests_running")) == (1, 0)
        answer.burst(num_tokens=1)
        assert (value(metrics, f"{OWN}requests_waiting"), value(metrics, f"{OWN}requests_running")) == (0, 1)
        clock.now_s += 0.6
        answer.burst(num_tokens=3)
        answer.end("length")
    assert (value(metrics, f"{OWN}requests_waiting"), value(metrics, f"{OWN}requests_running")) == (0, 0)
    assert value(metrics, f"{OWN}time_to_first_token_seconds_sum") == 1.0
    assert value(metrics, f"{OWN}inter_burst_seconds_count") == 1
    assert value(metrics, f"{OWN}inter_burst_seconds_sum") == pytest.approx(0.6)
    assert value(metrics, f"{OWN}inter_token_seconds_count") == 3
    assert value(metrics, f"{OWN}inter_token_seconds_sum") == pytest.approx(0.6)
    assert value(metrics, f"{OWN}inter_token_seconds_bucket", le="0.2") == 3
    assert value(metrics, f"{OWN}answer_seconds_sum") == pytest.approx(1.6)
    assert value(metrics, f"{OWN}prompt_tokens_total") == 7
    assert value(metrics, f"{OWN}generated_tokens_total") == 4
    assert value(metrics, f"{OWN}answers_total", finished_reason="length") == 1


@pytest.mark.parametrize(("error", "reason"), [(asyncio.CancelledError(), "abort"), (ValueError(), "error")])
@pytest.mark.parametrize("num_bursts", [0, 1])
def test_answers_that_do_not_end_well_leave_the_gauges_at_zero(
    error: BaseException, reason: str, num_bursts: int
) -> None:
    metrics, clock = EdgeMetrics(), Clock()
    with pytest.raises(type(error)), meter(metrics, clock) as answer:
        for _ in range(num_bursts):
            answer.burst(num_tokens=1)
        raise error
    assert (value(metrics, f"{OWN}requests_waiting"), value(metrics, f"{OWN}requests_running")) == (0, 0)
    assert value(metrics, f"{OWN}answers_total", finished_reason=reason) == 1
    assert value(metrics, f"{OWN}answer_seconds_count") == 0


@pytest.mark.parametrize(
    ("ttft_s", "gap_s", "num_tokens", "is_met"),
    [(1.0, 0.3, 3, True), (1.1, 0.3, 3, False), (1.0, 0.31, 3, False), (1.0, 0.0, 0, True), (1.1, 0.0, 0, False)],
)
def test_an_answer_meets_the_slo_by_its_first_token_and_its_mean_pause(
    ttft_s: float, gap_s: float, num_tokens: int, is_met: bool
) -> None:
    metrics, clock = EdgeMetrics(slo=Slo(ttft_s=1.0, itl_s=0.1)), Clock()
    with AnswerMeter(metrics, clock.now_s - ttft_s, num_prompt_tokens=7, clock=clock) as answer:
        answer.burst(num_tokens=1)
        if num_tokens:
            clock.now_s += gap_s
            answer.burst(num_tokens)
        answer.end("stop")
    assert value(metrics, f"{OWN}slo_answers_total", met="yes") == is_met
    assert value(metrics, f"{OWN}slo_answers_total", met="no") == (not is_met)
    assert value(metrics, f"{OWN}slo_tokens_total") == is_met * (1 + num_tokens)
    assert value(metrics, f"{OWN}slo_seconds", of="time_to_first_token") == 1.0


def test_what_did_not_end_well_neither_meets_nor_misses_the_slo() -> None:
    metrics = EdgeMetrics()
    with pytest.raises(ValueError), meter(metrics, Clock()) as answer:
        answer.burst(num_tokens=1)
        raise ValueError
    assert [value(metrics, f"{OWN}slo_answers_total", met=met) for met in ("yes", "no")] == [0, 0]


def observed() -> EdgeMetrics:
    metrics = EdgeMetrics(lambda: "demo")
    observer: StreamObserver = StreamMetrics(metrics)
    observer.opened(SessionOpened(num_cached_tokens=48, max_live_nodes=64), open_s=0.02, num_resumed_tokens=0)
    observer.sent(300, num_nodes=0)
    observer.sent(120, num_nodes=10)
    observer.received(40)
    observer.verdict(Verdict(9, (1, 2, 3), "", 10_000, 20_000, num_nodes_verified=8, num_accepted=2), round_s=0.1)
    observer.verdict(Verdict(12, (4,), "", 0, 20_000), round_s=None)
    observer.verdict(Verdict(13, (4,), "", 0, 90_000, num_nodes_verified=1, num_accepted=0), round_s=0.05)
    observer.round_trip(0.03)
    observer.round_trip(0.04)
    observer.drafts_refused()
    observer.broken("reset")
    observer.opened(SessionOpened(num_cached_tokens=16, max_live_nodes=64), open_s=0.02, num_resumed_tokens=5)
    observer.gave_up("gone")
    return metrics


def test_streams_are_counted() -> None:
    metrics = observed()
    assert value(metrics, f"{OWN}verifier_bytes_total", direction="up") == 420
    assert value(metrics, f"{OWN}verifier_bytes_total", direction="down") == 40
    assert value(metrics, f"{OWN}drafted_nodes_total") == 10
    assert value(metrics, f"{OWN}cached_prompt_tokens_total") == 48, "what a resumed session finds is its own text"
    assert value(metrics, f"{OWN}resumed_tokens_total") == 5
    assert value(metrics, f"{OWN}reconnects_total") == 1
    assert value(metrics, f"{OWN}answers_lost_total") == 1
    assert value(metrics, f"{OWN}round_seconds_sum") == pytest.approx(0.15)
    assert value(metrics, f"{OWN}round_trip_seconds_sum") == pytest.approx(0.07)
    assert value(metrics, f"{OWN}drafts_refused_total") == 1


def test_a_rounds_time_is_the_verifiers_queue_its_step_and_the_rest() -> None:
    metrics = observed()
    parts = [value(metrics, f"{OWN}round_part_seconds_total", part=part) for part in ("queue", "step", "network")]
    # Of 100 ms: 10, 20 and the rest; and a step that began before its round's draft was sent takes all of its 50 ms.
    assert parts == pytest.approx([0.01, 0.02 + 0.05, 0.07])


def test_acceptance_is_counted_by_depth() -> None:
    metrics = observed()
    assert value(metrics, f"{OWN}verifications_total") == 2, "a step without draft nodes is none"
    assert value(metrics, f"{OWN}verified_draft_nodes_total") == 9
    assert value(metrics, f"{OWN}accepted_draft_nodes_total") == 2
    by_depth = [value(metrics, f"{OWN}accepted_draft_nodes_by_depth_total", depth=str(d)) for d in (1, 2, 3)]
    assert by_depth == [1, 1, 0]


def test_depth_labels_stay_few() -> None:
    metrics = EdgeMetrics()
    StreamMetrics(metrics).verdict(Verdict(0, (1,), "", num_nodes_verified=200, num_accepted=100), None)
    assert value(metrics, f"{OWN}accepted_draft_nodes_by_depth_total", depth="32") == 69
    assert value(metrics, f"{OWN}accepted_draft_nodes_by_depth_total", depth="33") is None


def test_vllms_names_show_the_same_values() -> None:
    metrics = observed()
    assert vllm(metrics, "spec_decode_num_drafts_total") == 2
    assert vllm(metrics, "spec_decode_num_draft_tokens_total") == 9
    assert vllm(metrics, "spec_decode_num_accepted_tokens_total") == 2
    assert vllm(metrics, "spec_decode_num_accepted_tokens_per_pos_total", position="0") == 1
    assert vllm(metrics, "spec_decode_num_accepted_tokens_per_pos_total", position="2") == 0
    assert vllm(metrics, "prefix_cache_hits_total") == 48
    with meter(metrics, Clock()) as answer:
        answer.burst(num_tokens=1)
        assert vllm(metrics, "num_requests_running") == 1
        answer.end("stop")
    assert vllm(metrics, "time_to_first_token_seconds_bucket", le="1.0") == 1
    assert vllm(metrics, "request_success_total", finished_reason="stop") == 1


def test_the_drafters_totals_are_read_when_scraped() -> None:
    metrics = EdgeMetrics()
    draft_metrics = DraftMetrics(metrics.registry, "specedge_edge", metrics.draft_step)
    stats = DrafterStats(num_rows=12, num_session_steps=5, num_guesses_hit=2, wasted=Counter({"rejected": 3}))
    pool = BlockPool(16, block_size=1)
    draft_metrics.watch(stats, pool)
    draft_metrics.step(StepReport(schedule_s=0.001, forward_s=0.002, settle_s=0.003, num_rows=4, num_sessions=2))
    assert value(metrics, f"{OWN}draft_step_seconds_sum") == pytest.approx(0.006)
    assert value(metrics, f"{OWN}draft_rows_total") == 12
    assert value(metrics, f"{OWN}draft_guesses_total", outcome="hit") == 2
    assert value(metrics, f"{OWN}wasted_draft_nodes_total", reason="rejected") == 3
    pool.allocate(3)
    stats.num_rows, stats.num_rests = 20, 1
    for num_tokens in (0, 3, 3, 100):
        stats.lead(num_tokens)
    assert value(metrics, f"{OWN}draft_kv_slots", state="held") == 3
    assert value(metrics, f"{OWN}draft_kv_slots", state="free") == 13
    assert value(metrics, f"{OWN}draft_rows_total") == 20
    assert value(metrics, f"{OWN}draft_rests_total") == 1
    bounds = ("0.0", "2.0", "3.0", "32.0", "+Inf")
    assert [value(metrics, f"{OWN}draft_lead_tokens_bucket", le=bound) for bound in bounds] == [1, 1, 3, 3, 4]
    assert value(metrics, f"{OWN}draft_lead_tokens_sum") == 106


def test_vllms_names_wait_until_the_model_has_one() -> None:
    metrics = EdgeMetrics()
    assert b"vllm:" not in generate_latest(metrics.registry)
    metrics.model_name = lambda: "named"
    assert b'vllm:generation_tokens_total{engine="0",model_name="named"}' in generate_latest(metrics.registry)


def test_a_price_is_shown_once_it_is_known() -> None:
    metrics = EdgeMetrics()
    metrics.costs(None)
    assert value(metrics, f"{OWN}price_dollars_per_second") is None
    metrics.costs(3.6)
    assert value(metrics, f"{OWN}price_dollars_per_second") == pytest.approx(0.001)


def test_each_registry_is_its_own() -> None:
    first, second = EdgeMetrics(), EdgeMetrics()
    first.reconnects.inc()
    assert value(second, f"{OWN}reconnects_total") == 0


def test_all_of_it_can_be_written_in_prometheus_format() -> None:
    lines = generate_latest(observed().registry).decode().splitlines()
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    assert "vllm:inter_token_latency_seconds" in names


def test_looked_up_nodes_are_counted_by_source() -> None:
    metrics, stats = EdgeMetrics(), LookupStats()
    metrics.registry.register(LookupMetrics("specedge_edge", stats))
    stats.drafted["lookup"] += 5
    stats.confirmed["prediction"] += 2
    assert value(metrics, f"{OWN}lookup_draft_nodes_total", source="lookup") == 5
    assert value(metrics, f"{OWN}lookup_draft_nodes_total", source="prediction") == 0
    assert value(metrics, f"{OWN}confirmed_lookup_draft_nodes_total", source="prediction") == 2
