"""Edges that choose among several verifiers, in virtual time; and a verifier whose processor is full."""

from typing import Any

import pytest
from simulated import scenario

from specedge_bench.curves import straight_curve
from specedge_bench.network.profiles import network_profile
from specedge_bench.simulation.choice import imbalance
from specedge_bench.simulation.result import SimResult
from specedge_bench.simulation.shard import run_shard
from specedge_bench.simulation.simulation import simulate

# Answers that last some seconds: hints are a second old, and five where an edge has no session.
BUSY: dict[str, Any] = {
    "system": "autoregressive",
    "num_sessions": 80,
    "arrival_rate": 20.0,
    "num_edges": 8,
    "num_verifiers": 4,
    "length_spread": 0.9,
    "max_tokens": 100,
    "network": network_profile("rtt15"),
}


def chosen(choice: str, **changes: Any) -> SimResult:
    return simulate(scenario(**(BUSY | {"verifier_choice": choice} | changes)))


def test_two_choices_spread_sessions_better_than_chance() -> None:
    blind, seeing = chosen("random"), chosen("two")
    assert 1.0 < seeing.imbalance < blind.imbalance
    assert seeing.num_tokens == blind.num_tokens, "every system is asked the same"


def test_every_answer_is_complete_wherever_it_was_opened() -> None:
    busy = scenario(
        **(
            BUSY
            | {"verifier_choice": "two", "system": "specedge", "num_sessions": 24, "num_edges": 6, "max_tokens": 24}
        )
    )
    outcome = run_shard(busy, 0)
    assert len(outcome.answers) == 24
    assert {answer.verifier for answer in outcome.answers} == {0, 1, 2, 3}
    assert outcome.num_drafters == 6
    per_edge = [{answer.verifier for answer in outcome.answers if answer.edge == edge} for edge in range(6)]
    assert max(map(len, per_edge)) > 1, "an edge's sessions are on several verifiers"


@pytest.mark.parametrize("system", ["autoregressive", "server-only", "specedge"])
def test_a_single_verifier_leaves_nothing_to_choose(system: str) -> None:
    results = [
        simulate(scenario(system=system, num_sessions=4, num_edges=2, verifier_choice=choice))
        for choice in ("fixed", "random", "two")
    ]
    assert results[0] == results[1] == results[2]
    assert results[0].imbalance == 1.0


def test_one_edge_can_be_on_more_verifiers_than_there_are_edges() -> None:
    result = chosen("two", num_edges=1, num_sessions=40, max_tokens=24)
    assert result.num_answers == 40
    assert result.imbalance < 1.5


def test_the_seed_decides_every_choice() -> None:
    assert chosen("two", num_sessions=30, max_tokens=24) == chosen("two", num_sessions=30, max_tokens=24)
    assert chosen("two", num_sessions=30, max_tokens=24) != chosen("two", num_sessions=30, max_tokens=24, seed=1)


def test_a_full_processor_sets_the_pace_of_steps() -> None:
    busy = {"system": "autoregressive", "num_sessions": 10, "verifier_curve": straight_curve("10ms")}
    free, full = (simulate(scenario(**busy, verifier_session_s=session_s)) for session_s in (0.0009, 0.002))
    assert free == simulate(scenario(**busy)), "the processor works while the device computes"
    assert full.itl_ms[0] == pytest.approx(2 * free.itl_ms[0], rel=0.05)


def test_imbalance_is_the_busiest_by_the_mean() -> None:
    assert imbalance([1.0, 2.0, 3.0]) == 1.5
    assert imbalance([0.0, 0.0]) == 1.0
