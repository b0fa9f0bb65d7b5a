"""What a sweep tries next and what it recommends."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from bench_rows import write_synthetic_run

from edge_agent.settings import EdgeSettings
from specedge_bench.run_folder import RunFolder
from specedge_bench.summary import per_repetition
from specedge_bench.sweep import Candidate, NothingWorks, Score, choose, recommendation, scores
from specedge_bench.systems import UnknownSystem, parse_system

PRESENT = Candidate()


def found(**rates: float) -> dict[str, Score]:
    by_name = {"present": PRESENT, "small": PRESENT.changed("max_budget", "16"), "off": PRESENT.changed("mode", "off")}
    return {by_name[name].system: Score(by_name[name].system, (rate, rate + 2), True) for name, rate in rates.items()}


def test_only_a_clear_gain_changes_a_setting() -> None:
    candidates = [PRESENT, PRESENT.changed("max_budget", "16"), PRESENT.changed("mode", "off")]
    assert choose(PRESENT, candidates, found(present=100, small=102, off=90), margin=0.03) == PRESENT
    assert choose(PRESENT, candidates, found(present=100, small=104, off=105), margin=0.03) == candidates[2]


def test_a_gain_in_half_of_the_repetitions_is_no_clear_gain() -> None:
    small = PRESENT.changed("max_budget", "16")
    scores = {
        PRESENT.system: Score(PRESENT.system, (100.0, 100.0, 100.0, 100.0), True),
        small.system: Score(small.system, (150.0, 95.0, 96.0, 120.0), True),
    }
    assert scores[small.system].tokens_per_s > 1.1 * scores[PRESENT.system].tokens_per_s
    assert choose(PRESENT, [PRESENT, small], scores, margin=0.03) == PRESENT


def test_scores_are_throughputs_in_one_order_and_know_failed_requests(tmp_path: Path) -> None:
    write_synthetic_run(tmp_path, num_repetitions=2)
    run = RunFolder.load(tmp_path)
    found = scores(run)

    assert set(found) == {"autoregressive", "server-only", "specedge"}
    assert all(score.is_complete and len(score.rates) == 8 for score in found.values())
    first = per_repetition(run)["specedge/far/closed-1", 0]["throughput"]
    assert found["specedge"].rates[0] == pytest.approx(first)
    broken = replace(run, requests=(replace(run.requests[0], status="failed", error="gone"), *run.requests[1:]))
    assert [name for name, score in scores(broken).items() if not score.is_complete] == [run.requests[0].system]


def test_a_system_with_failed_requests_is_not_chosen() -> None:
    candidate = PRESENT.changed("max_budget", "16")
    scores = found(present=100) | {candidate.system: Score(candidate.system, (200.0,), is_complete=False)}
    assert choose(PRESENT, [PRESENT, candidate], scores, margin=0.0) == PRESENT


def test_present_settings_with_failed_requests_give_way() -> None:
    candidate = PRESENT.changed("max_budget", "16")
    scores = found(small=50) | {PRESENT.system: Score(PRESENT.system, (200.0,), is_complete=False)}
    assert choose(PRESENT, [PRESENT, candidate], scores, margin=0.5) == candidate
    with pytest.raises(NothingWorks, match=re.escape(f"none of {PRESENT.system} answered")):
        choose(PRESENT, [PRESENT], scores, margin=0.5)


@pytest.mark.parametrize(
    ("plain", "words"),
    [
        (
            Score("autoregressive", (90.0,), True),
            ["Recommended (101 tokens/s with drafting, 90 without)", "max_budget: 16"],
        ),
        (Score("autoregressive", (120.0,), True), ["does not pay here", "120 without", "draft_model: none"]),
        (Score("autoregressive", (120.0,), False), ["Recommended, at 101 tokens/s", "max_budget: 16"]),
    ],
)
def test_the_recommendation_is_measured_against_plain_decoding(plain: Score, words: list[str]) -> None:
    text = recommendation(PRESENT.changed("max_budget", "16"), found(small=100) | {plain.system: plain})
    assert all(word in text for word in words), text


def test_candidates_are_systems_of_a_run_and_settings_of_an_edge() -> None:
    candidate = PRESENT.changed("max_budget", "16").changed("mode", "off").changed("max_beam_len", "4")
    variant = parse_system(candidate.system)
    assert (variant.mode, variant.batch_type) == ("off", "ready")
    assert variant.edge_arguments("demo")[-4:] == ["--max-budget", "16", "--max-beam-len", "4"]
    assert candidate.settings().splitlines() == [
        "edge:",
        "  max_budget: 16",
        "  max_beam_len: 4",
        "  proactive:",
        "    type: off",
    ]


def test_what_is_the_edges_default_anyway_is_no_candidate_of_its_own() -> None:
    default = str(EdgeSettings().max_budget)
    assert PRESENT.changed("max_budget", default) == PRESENT
    assert PRESENT.changed("max_budget", "16").changed("max_budget", default) == PRESENT


@pytest.mark.parametrize("growth", ["max_budget", "max_budget=0", "max_budget=x", "budget=4", "", "max_budget=4+"])
def test_growth_that_is_none_is_refused_by_name(growth: str) -> None:
    with pytest.raises(UnknownSystem, match="max_branch_width"):
        parse_system(f"specedge:off:ready:{growth}")
