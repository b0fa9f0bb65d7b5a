"""Rows condensed to cells, tables and a timeline, against values computed by hand."""

import math

import pytest
from bench_rows import cell_row, request, run_info, step

from specedge_bench.run_folder import Run
from specedge_bench.session_timeline import labels_apart, session_timeline
from specedge_bench.summary import Slo, identity, per_repetition, summarise
from specedge_bench.tables import efficiency_ratios, headline_table, natural_key, number

CELL = "specedge/wan/closed-1"


def _run(requests=(), cells=(), steps=()) -> Run:
    return Run(run_info(), tuple(requests), tuple(steps), tuple(cells))


def test_throughput_is_tokens_over_wall_time_of_all_repetitions() -> None:
    run = _run(
        [request(num_tokens=6), request(num_tokens=30, repetition=1)],
        [cell_row(wall_s=2.0), cell_row(wall_s=3.0, repetition=1)],
    )
    (cell,) = summarise(run, Slo())
    assert cell.num_repetitions == 2
    assert cell.throughput.mean == pytest.approx(36 / 5)
    # The repetitions reached 3 and 10 tokens/s.
    assert (cell.throughput.low, cell.throughput.high) == (3.0, 10.0)
    assert per_repetition(run)[CELL, 1]["throughput"] == 10.0


def test_goodput_counts_requests_within_both_limits() -> None:
    good = request(num_tokens=6)  # TTFT 0.5 s, TPOT 0.1 s
    late = request(num_tokens=6, scheduled_s=0.0)  # TTFT 1.5 s
    slow = request(num_tokens=6, bursts=((1.5, 1), (4.0, 5)), finished_s=4.0)  # TPOT 0.5 s
    failed = request(status="failed", bursts=(), num_tokens=0)
    short = request(num_tokens=1, bursts=((1.5, 1),))
    (cell,) = summarise(_run([good, late, slow, failed, short], [cell_row(num_failed=1)]), Slo(1.0, 0.2))
    assert cell.goodput == pytest.approx((6 + 1) / 2.0)
    assert cell.slo_share == pytest.approx(2 / 5)
    assert (cell.num_ok, cell.num_failed) == (4, 1)


def test_failed_requests_stay_out_of_latencies_and_tokens() -> None:
    failed = request(status="failed", num_tokens=100, bursts=((1.9, 100),))
    (cell,) = summarise(_run([request(), failed], [cell_row()]), Slo())
    assert cell.num_tokens == 6
    assert cell.latencies.ttft.num_samples == 1


def test_speculation_adds_up_over_repetitions() -> None:
    first = cell_row(
        num_verifications=4,
        num_trees=2,
        num_nodes_verified=10,
        num_accepted=3,
        accepted_by_depth=(2, 1),
        wasted={"rejected": 7},
        guesses_hit=1,
        guesses_missed=1,
        bytes_up=400,
        bytes_down=40,
        wire_bytes_up=600,
        wire_bytes_down=60,
        num_draft_steps=5,
        num_draft_rows=80,
        num_draft_session_steps=9,
        verifier_busy_s=0.6,
        draft_busy_s=1.2,
        rtt_ms_measured=15.0,
    )
    second = cell_row(
        repetition=1, num_trees=2, num_verifications=2, accepted_by_depth=(1,), wasted={"rejected": 1, "trimmed": 2},
        guesses_missed=2, rtt_ms_measured=None, prefix_queries=4, prefix_hits=1, wire_bytes_up=60, num_draft_steps=1,
    )  # fmt: skip
    (cell,) = summarise(_run([request(), request(repetition=1)], [first, second]), Slo())
    drafts = cell.speculation
    assert drafts.tokens_per_verification == pytest.approx(12 / 6)
    assert drafts.accepted_per_tree == pytest.approx(3 / 4)
    assert drafts.acceptance_by_depth == (0.75, 0.25)
    assert drafts.wasted == {"rejected": 8, "trimmed": 2}
    assert drafts.guess_hit_rate == pytest.approx(1 / 4)
    assert drafts.bytes_up_per_verification == pytest.approx(400 / 6)
    assert drafts.wire_bytes_up_per_verification == pytest.approx(660 / 6)
    assert math.isnan(drafts.wire_bytes_down_per_verification), "one repetition was not counted"
    assert drafts.draft_steps_per_token == pytest.approx(6 / 12)
    assert (drafts.rows_per_draft_step, drafts.sessions_per_draft_step) == pytest.approx((80 / 6, 9 / 6))
    assert cell.verifier_busy_s_per_token == pytest.approx(0.05)
    assert cell.draft_busy_s_per_token == pytest.approx(0.1)
    assert cell.rtt_ms_measured == 15.0
    assert cell.prefix_hit_rate == 0.25


def test_steps_give_their_parts_and_queues() -> None:
    steps = [
        step(schedule_ms=1.0, forward_ms=5.0, sample_ms=2.0, settle_ms=2.0, queue_ms=(1.0, 3.0)),
        step(schedule_ms=3.0, forward_ms=15.0, sample_ms=1.0, settle_ms=1.0, queue_ms=(2.0,)),
    ]
    (cell,) = summarise(_run([request()], [cell_row()], steps), Slo())
    assert (cell.steps.total.p50, cell.steps.total.p99) == (10.0, 20.0)
    assert (cell.steps.mean_schedule, cell.steps.mean_forward) == (2.0, 10.0)
    assert (cell.steps.queue.p50, cell.steps.queue.p99) == (2.0, 3.0)


def test_an_interrupted_repetition_counts_for_latency_alone() -> None:
    (cell,) = summarise(_run([request(), request(repetition=1, num_tokens=50)], [cell_row()]), Slo())
    assert (cell.num_repetitions, cell.num_interrupted) == (1, 1)
    assert cell.throughput.mean == pytest.approx(6 / 2)
    assert cell.latencies.ttft.num_samples == 2


def test_a_cell_without_a_complete_repetition_is_still_listed() -> None:
    (cell,) = summarise(_run([request()]), Slo())
    assert math.isnan(cell.throughput.mean)
    assert cell.latencies.ttft.p50 == pytest.approx(0.5)


def test_identity_names_the_cells_that_differ() -> None:
    other = "server-only/wan/closed-1"
    rows = [
        request(prompt="same"),
        request(other, prompt="same"),
        request(prompt="differs"),
        request(other, prompt="differs", digest="e"),
        request(prompt="other seed", seed=1),
        request(other, prompt="other seed", seed=2, digest="e"),
        request(other, prompt="same", status="failed", digest=""),
    ]
    found = identity(rows)
    assert found.num_compared == 2
    (mismatch,) = found.mismatches
    assert (mismatch.prompt, mismatch.seed) == ("differs", 1)
    assert mismatch.cells_by_digest == {"d": (CELL,), "e": (other,)}


def test_identity_sees_a_system_that_differs_from_itself() -> None:
    found = identity([request(), request(repetition=1, digest="e")])
    assert found.num_compared == 0
    assert len(found.mismatches) == 1


def test_efficiency_is_relative_to_the_baseline_at_the_same_place() -> None:
    cells = ["autoregressive/wan/closed-1", "server-only/wan/closed-1", CELL, "specedge/far/closed-1"]
    rows = [cell_row(name, draft_on_verifier=name.startswith("server")) for name in cells]
    tokens = dict(zip(cells, (10, 20, 33, 33), strict=True))
    summaries = summarise(_run([request(name, num_tokens=tokens[name]) for name in cells], rows), Slo())
    ratios = efficiency_ratios(summaries)
    # The verifier costs 0.001 $/s and the edge a tenth of it: 33 / 1.1 = 30 tokens for the price of one verifier.
    assert ratios[CELL]["server-only"] == pytest.approx(1.5)
    assert ratios[CELL]["autoregressive"] == pytest.approx(3.0)
    assert ratios["specedge/far/closed-1"] == {}
    bound = {CELL: 33.0}
    overview = headline_table(summaries, bound)
    assert overview.header[-1] == "of bound"
    assert [row[-1] for row in overview.rows if row[0] == "wan" and row[2] == "specedge"] == ["50 %"]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (0.0, "0"),
        (1234.5, "1,230"),
        (12.345, "12.3"),
        (0.00123456, "0.00123"),
        (-2.5, "-2.50"),
        (9.999, "10.0"),
        (999.6, "1,000"),
    ],
)
def test_numbers_keep_three_digits(value: float, wanted: str) -> None:
    assert number(value) == wanted


def test_loads_sort_by_their_number() -> None:
    assert sorted(["closed-16", "closed-8", "poisson-2"], key=natural_key) == ["closed-8", "closed-16", "poisson-2"]


def test_timeline_matches_bursts_with_the_steps_before_them() -> None:
    served = request(sent_s=1.0, bursts=((1.12, 1), (1.30, 2)))
    steps = [
        step(started_s=1.05, forward_ms=20.0),  # ends 1.07, half a trip before the first burst
        step(started_s=1.09, forward_ms=10.0),  # ends 1.10: too late for 1.12, so another session's
        step(started_s=1.20, forward_ms=50.0),  # ends 1.25
    ]
    timeline = session_timeline(served, 0.1, steps)
    assert timeline.steps == (pytest.approx((0.05, 0.07)), pytest.approx((0.20, 0.25)))
    assert timeline.other_steps == (pytest.approx((0.09, 0.10)),)
    # Up until the first step; down to 1.12; up again from 1.15; down to 1.30.
    assert timeline.network == (
        pytest.approx((0.0, 0.05)),
        pytest.approx((0.07, 0.12)),
        pytest.approx((0.15, 0.20)),
        pytest.approx((0.25, 0.30)),
    )
    assert timeline.edge == (pytest.approx((0.12, 0.15)),)
    assert timeline.bursts == ((pytest.approx(0.12), 1), (pytest.approx(0.30), 2))


def test_labels_of_bursts_that_lie_together_are_one() -> None:
    bursts = [(0.010, 3), (0.012, 4), (0.0145, 1), (0.030, 2)]
    assert labels_apart(bursts, 0.004) == [(0.010, 7), (0.0145, 1), (0.030, 2)]
    assert labels_apart([], 0.004) == []
