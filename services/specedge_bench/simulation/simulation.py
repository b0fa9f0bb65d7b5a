"""Runs one scenario and adds up what its shards brought."""

from collections.abc import Sequence
from statistics import median

from specedge_bench.simulation.choice import imbalance
from specedge_bench.simulation.result import Answer, SimResult, burst_gaps, percentiles_ms, token_gaps
from specedge_bench.simulation.scenario import Progress, Scenario
from specedge_bench.simulation.shard import ShardOutcome, run_shard
from specedge_bench.simulation.totals import VerifierTotals


def simulate(scenario: Scenario, on_progress: Progress | None = None) -> SimResult:
    """Runs a scenario to the end of its last answer; progress is told of one verifier after the other."""
    shards = range(scenario.num_shards)
    return result_of(scenario, [run_shard(scenario, index, on_progress) for index in shards])


def result_of(scenario: Scenario, outcomes: Sequence[ShardOutcome]) -> SimResult:
    """The numbers of a whole scenario.

    Args:
        scenario: what was run.
        outcomes: of all its shards.
    """
    asked = [answer for outcome in outcomes for answer in outcome.answers]
    answers = [answer for answer in asked if answer.retry_after_s is None]
    wall_s = max(answer.bursts[-1][0] for answer in answers) - min(answer.sent_s for answer in answers)
    totals = VerifierTotals()
    for outcome in outcomes:
        totals.add(outcome.totals)
    verifier_busy_s = sum(outcome.verifier_busy_s for outcome in outcomes)
    draft_busy_s = sum(outcome.draft_busy_s for outcome in outcomes)
    num_drafters = sum(outcome.num_drafters for outcome in outcomes)
    num_tokens = sum(answer.num_tokens for answer in answers)
    tpots = [tpot for answer in answers if (tpot := answer.tpot_s) is not None]
    return SimResult(
        num_answers=len(answers),
        num_refused=len(asked) - len(answers),
        num_tokens=num_tokens,
        wall_s=wall_s,
        tokens_per_s=num_tokens / wall_s,
        itl_ms=percentiles_ms(token_gaps(answers)),
        burst_ms=percentiles_ms(burst_gaps(answers)),
        tpot_ms=1e3 * median(tpots) if tpots else float("nan"),
        ttft_ms=percentiles_ms([answer.ttft_s for answer in answers]),
        tokens_per_verification=totals.num_committed / totals.num_verifications,
        nodes_per_verification=totals.num_nodes / totals.num_verifications,
        with_tree=totals.num_trees / totals.num_verifications,
        verifier_busy=verifier_busy_s / wall_s / scenario.num_verifiers,
        draft_busy=draft_busy_s / wall_s / num_drafters if num_drafters else 0.0,
        verifier_busy_s=verifier_busy_s,
        draft_busy_s=draft_busy_s,
        sessions_per_step=totals.num_verifications / totals.num_steps,
        bytes_up=sum(outcome.bytes_up for outcome in outcomes) / totals.num_verifications,
        bytes_down=sum(outcome.bytes_down for outcome in outcomes) / totals.num_verifications,
        guesses_hit=sum(outcome.guesses_hit for outcome in outcomes),
        guesses_missed=sum(outcome.guesses_missed for outcome in outcomes),
        num_preemptions=sum(outcome.num_preemptions for outcome in outcomes),
        imbalance=imbalance(_session_seconds(answers, scenario.num_verifiers)),
    )


def _session_seconds(answers: Sequence[Answer], num_verifiers: int) -> list[float]:
    """By verifier, how long all answers together took there."""
    seconds = [0.0] * num_verifiers
    for answer in answers:
        seconds[answer.verifier] += answer.bursts[-1][0] - answer.sent_s
    return seconds
