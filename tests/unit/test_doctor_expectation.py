"""The model behind the expected speed-up: its limits, its directions, and the bound of the bench."""

import pytest

from specedge.drafting.growth import GrowthSettings
from specedge_bench.bound import physical_bound, tokens_from_points
from specedge_bench.curves import Grid, StepCurve
from specedge_cli.doctor.expectation import expected_pace, judge_drafted, judge_expectation
from specedge_cli.doctor.session_model import Pace, Times, greatest_lead, streamed_pace
from specedge_cli.doctor.target_speed import judge_target_step

TIMES = Times(verifier_step_s=0.03, draft_step_s=0.005, round_trip_s=0.015)
LEAD = 12


def test_without_agreement_every_token_takes_a_step() -> None:
    pace = streamed_pace(TIMES, 0.0, LEAD)
    assert pace.tokens_per_verification == 1.0 and pace.seconds_per_token == pytest.approx(0.03)


def test_with_full_agreement_the_slower_of_the_two_models_sets_the_pace() -> None:
    draft_bound = streamed_pace(TIMES, 1.0, 64)
    assert draft_bound.seconds_per_token == pytest.approx(0.005, rel=0.2)
    level = Times(verifier_step_s=0.03, draft_step_s=0.03, round_trip_s=0.0)
    # A draft model that is no faster finds each token when the target already has it.
    assert streamed_pace(level, 1.0, 64).tokens_per_verification == 1.0


@pytest.mark.parametrize("agreement", [0.5, 0.85])
def test_a_longer_way_and_a_slower_draft_cost(agreement: float) -> None:
    def seconds(draft_step_s: float, round_trip_s: float) -> float:
        return streamed_pace(Times(0.03, draft_step_s, round_trip_s), agreement, LEAD).seconds_per_token

    by_distance = [seconds(0.005, trip_s) for trip_s in (0.0, 0.015, 0.06, 0.2)]
    by_step = [seconds(step_s, 0.015) for step_s in (0.001, 0.01, 0.05)]
    assert by_distance == sorted(by_distance) and by_step == sorted(by_step)
    assert by_distance[-1] <= 0.03, "the verifier decodes plainly while it waits, so drafts never cost"


def test_a_small_tree_gives_away_what_agreement_allows() -> None:
    late, small, large = (expected_pace(TIMES, GrowthSettings(max_budget=budget)) for budget in (1, 3, 64))
    # A single node past the last known verdict arrives when the verifier is past it.
    assert late.seconds_per_token == pytest.approx(TIMES.verifier_step_s)
    assert large.seconds_per_token < small.seconds_per_token < late.seconds_per_token


@pytest.mark.parametrize("round_trip_s", [0.0, 0.015, 0.06])
@pytest.mark.parametrize("agreement", [0.5, 0.85])
def test_it_stays_below_the_physical_bound(agreement: float, round_trip_s: float) -> None:
    pace = streamed_pace(Times(0.03, 0.001, round_trip_s), agreement, LEAD)
    chains = {nodes: (1 - agreement ** (nodes + 1)) / (1 - agreement) for nodes in range(1, LEAD + 1)}
    curve = StepCurve("here", "any", "any", "bfloat16", "flat", Grid((1, 64), (0,), ((0.03,), (0.03,))))
    bound = physical_bound(curve, 1, 0, tokens_from_points(chains), rtt_s=round_trip_s, hit_rate=1.0)
    assert pace.seconds_per_token >= bound.itl_s


def test_how_far_ahead_drafts_are_worth_sending() -> None:
    assert greatest_lead(0.0, 64, 0.9, 0.003) == 1
    assert greatest_lead(0.85, 8, 0.9, 0.003) == 8
    assert greatest_lead(0.85, 64, 0.9, 0.003) > greatest_lead(0.5, 64, 0.9, 0.003)
    assert greatest_lead(1.0, 64, 1.0, 0.003) == 64


def test_whether_drafting_should_pay() -> None:
    good = judge_expectation(0.03, TIMES, Pace(2.0, 0.015))
    assert good.state == "ok" and "2.0 tokens per verification, 15.0 ms per token with and 30.0 ms" in good.found
    assert "85% of the target's tokens" in good.found
    slow = judge_expectation(0.03, Times(0.03, 0.05, 0.0), Pace(1.0, 0.03))
    far = judge_expectation(0.03, Times(0.03, 0.005, 0.2), Pace(1.0, 0.03))
    fast = judge_expectation(0.002, Times(0.002, 0.0015, 0.003), Pace(1.0, 0.002))
    assert [finding.state for finding in (slow, far, fast)] == ["warn", "warn", "warn"]
    assert "smaller draft model" in slow.change and "nearer verifier" in far.change and "larger target" in fast.change
    assert judge_drafted(0.03, 0.015, 2.0).state == "ok"
    assert judge_drafted(0.03, 0.04, 1.1).state == "warn"


def test_what_an_edge_may_expect_of_a_target() -> None:
    steps, speed_up = judge_target_step([(1, 0.03), (8, 0.03), (32, 0.033), (128, 0.05)], 64, 0.9)
    assert "a tree of 31 nodes makes a step 1.1 times as long" in steps.found
    assert steps.values["step_ms_1_rows"] == 30.0 and speed_up.state == "ok"
    _, none = judge_target_step([(1, 0.001), (32, 0.004)], 64, 0.9)
    assert none.state == "warn"
