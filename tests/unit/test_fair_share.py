"""Fairness between tenants of one engine, in steps: places, blocks, rows of prompts and of draft nodes, pace."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenant_support import TenantEngine

from specedge_verifier.fair_share import water_fill
from specedge_verifier.tenant_account import Pace, Tenant, TenantAccount

WEIGHTS = st.sampled_from([0.25, 1.0, 1.5, 3.0])
PARTS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 60), WEIGHTS), min_size=1, max_size=5)


def prompt(seed: int, length: int) -> list[int]:
    return [(seed * 7 + index * index * (seed + 3) + index // 3) % 5 for index in range(length)]


@given(budget=st.integers(0, 150), parts=PARTS)
def test_a_budget_is_used_up_and_divided_max_min_fairly(budget: int, parts: list[tuple[int, int, float]]) -> None:
    used, wanted, weights = zip(*parts, strict=True)
    given_rows = water_fill(budget, used, wanted, weights)
    assert all(0 <= got <= want for got, want in zip(given_rows, wanted, strict=True))
    assert sum(given_rows) == min(budget, sum(wanted)), "work conserving"
    for one, (had, want, weight) in enumerate(parts):
        if given_rows[one] == want:
            continue
        level = (had + given_rows[one] + 1) / weight  # of one that wants more, with one more
        for other in range(len(parts)):
            if given_rows[other]:
                assert (used[other] + given_rows[other] - 1) / weights[other] <= level + 1e-9


@pytest.mark.parametrize(("weight", "places"), [(1.0, 4), (3.0, 6)])
def test_a_tenant_that_comes_late_gets_its_places_at_once(weight: float, places: int) -> None:
    engine = TenantEngine([Tenant("a"), Tenant("b", weight)])
    for number in range(30):
        engine.open("a", prompt(number, 6), 40)
    engine.advance(5)
    assert engine.accounts["a"].num_running == 8
    for number in range(30):
        engine.open("b", prompt(50 + number, 6), 40)
    engine.advance(1)
    assert (engine.accounts["a"].num_running, engine.accounts["b"].num_running) == (8 - places, places)
    num_preempted = engine.scheduler.num_preemptions
    assert num_preempted == places
    engine.advance(20)
    assert engine.scheduler.num_preemptions == num_preempted, "nobody moves to and fro"
    engine.finish()


def test_a_flood_does_not_slow_a_tenant_within_its_share() -> None:
    engine = TenantEngine([Tenant("a"), Tenant("b")], max_rows=24, drafted=3)
    for number in range(40):
        engine.open("a", prompt(number, 60), 30, priority=5)
    engine.advance(10)
    handle = engine.open("b", prompt(7, 20), 40)
    opened_at = len(engine.steps)
    while handle not in engine.answers or len(engine.answers[handle]) < 40:
        engine.step()
    steps = engine.committed_at[handle]
    assert steps[0] - opened_at <= 3, "20 prompt tokens, of a fair half of 24 rows each step"
    assert [later - earlier for earlier, later in pairwise(steps)] == [1] * (len(steps) - 1)
    assert len(steps) <= 12, "its drafts are verified: 40 tokens, 4 a step"


def test_prompts_share_the_rows_of_a_step_and_nothing_is_left() -> None:
    engine = TenantEngine([Tenant("a"), Tenant("b"), Tenant("c", 2.0)], max_rows=40)
    for number in range(3):
        engine.open("a", prompt(number, 180), 2)
    engine.open("b", prompt(11, 180), 2)
    engine.open("c", prompt(12, 100), 2)
    for step in engine.advance(5):
        assert step.rows == {"a": 10, "b": 10, "c": 20}
    rest = engine.advance(6)
    assert all(sum(step.rows.values()) == 40 for step in rest), "work conserving"
    assert all(step.rows["a"] == step.rows["b"] == 20 for step in rest[1:])
    engine.finish()


def test_prompts_whose_log_probabilities_are_wanted_share_those_too() -> None:
    engine = TenantEngine([Tenant("a"), Tenant("b")], max_rows=300, max_len=400)
    for number in range(4):
        engine.open("a", prompt(number, 300), 2, num_prompt_logprobs=0)
    engine.open("b", prompt(11, 300), 2, num_prompt_logprobs=0)
    schedule = engine.scheduler.schedule(0.0)
    chunks = dict.fromkeys("ab", 0)
    for item in schedule.planned:
        chunks[engine.tenant_of[item.session.handle]] += item.num_chunk
    assert chunks == {"a": 64, "b": 64}


def test_draft_nodes_share_what_roots_leave() -> None:
    engine = TenantEngine([Tenant("a"), Tenant("b")], max_rows=24, drafted=8)
    for number in range(7):
        engine.open("a", prompt(number, 4), 190)
    engine.open("b", prompt(9, 4), 190)
    engine.advance(10)
    for step in engine.advance(8):
        assert sum(step.rows.values()) == 24, "work conserving"
        assert step.nodes["b"] == step.live["b"] > 0, "all it has, though the others want more than there is"
        assert step.nodes["a"] < step.live["a"]
    alone = TenantEngine([Tenant("a")], max_rows=24, drafted=8)
    for number in range(8):
        alone.open("a", prompt(number, 4), 190)
    alone.advance(10)
    assert all(sum(step.rows.values()) == 24 for step in alone.advance(8))


def test_blocks_are_shared_and_the_share_of_one_tenant_bounds_it_alone() -> None:
    engine = TenantEngine([Tenant("a", kv_share=0.25), Tenant("b")], num_blocks=80, drafted=2)
    for number in range(10):
        engine.open("a", prompt(number, 17), 30)
    engine.advance(3)
    assert 0 < engine.accounts["a"].num_blocks <= 20
    assert engine.accounts["a"].num_running < 8, "places are free, and none of its blocks"
    others = [engine.open("b", prompt(20 + number, 17), 30) for number in range(3)]
    engine.advance(1)
    assert engine.accounts["b"].num_running == 3
    engine.finish()
    for other in others:
        steps = engine.committed_at[other]
        assert [later - earlier for earlier, later in pairwise(steps)] == [1] * (len(steps) - 1)


def test_who_runs_out_of_its_own_share_gives_up_its_own_newest_session() -> None:
    engine = TenantEngine([Tenant("a", kv_share=0.2), Tenant("b")], num_blocks=100)
    for number in range(3):
        engine.open("a", prompt(number, 15), 60)
    others = [engine.open("b", prompt(10 + number, 15), 60) for number in range(2)]
    engine.advance(40)
    assert engine.scheduler.num_preemptions > 0
    for other in others:
        assert engine.committed_at[other] == [*range(len(engine.committed_at[other]))], "never left out of a step"
    engine.finish()


def test_out_of_blocks_the_tenant_with_most_of_them_goes_first() -> None:
    engine = TenantEngine([Tenant("a"), Tenant("b")], num_blocks=60)
    for number in range(7):
        engine.open("a", prompt(number, 15), 60)
    other = engine.open("b", prompt(10, 15), 60)
    engine.advance(70)
    assert engine.scheduler.num_preemptions > 0
    assert engine.committed_at[other] == [*range(60)], "the newest session of all, and never preempted"
    engine.finish()


def test_speculation_goes_before_plain_decoding_is_slowed() -> None:
    def verified(rate: int) -> tuple[float, float, TenantEngine]:
        tenants = [Tenant("a", max_verified_tokens_per_second=rate), Tenant("b")]
        engine = TenantEngine(tenants, drafted=4, max_len=500, num_blocks=500, step_s=0.05)
        for number, name in enumerate("aab"):
            engine.open(name, prompt(number, 4), 490)
        engine.advance(20)  # empties the bucket
        began_s, steps = engine.now_s, engine.advance(40)
        took_s = engine.now_s - began_s
        roots, nodes = (sum(getattr(step, kind)["a"] for step in steps) for kind in ("roots", "nodes"))
        return roots / took_s, nodes / took_s, engine

    roots, nodes, _ = verified(100_000)
    assert roots == pytest.approx(40) and nodes == pytest.approx(160, rel=0.05), "no limit met, 20 steps a second"
    roots, nodes, _ = verified(80)
    assert roots == pytest.approx(40), "plain decoding is as fast as ever"
    assert roots + nodes == pytest.approx(80, rel=0.05)
    roots, nodes, engine = verified(20)
    assert nodes == 0 and roots == pytest.approx(20, rel=0.05), "then steps are paced"
    lengths = [len(engine.answers[handle]) for handle in (0, 1)]
    assert abs(lengths[0] - lengths[1]) <= 8, "each in its turn"
    assert engine.committed_at[2] == [*range(60)], "and nobody else is"


def test_a_paced_tenant_alone_waits_and_is_served_in_time() -> None:
    engine = TenantEngine([Tenant("a", max_verified_tokens_per_second=10)])
    engine.open("a", prompt(1, 4), 60)
    engine.finish()
    assert 4.0 <= engine.now_s <= 6.5, "60 tokens at 10 a second, of which a bucket holds a second's"


def test_a_new_rate_changes_the_bucket() -> None:
    pace = Pace()
    pace.refill(100, 0.0)
    assert (pace.num_roots, pace.num_nodes(10)) == (100, 40)
    pace.refill(10, 0.0)
    assert pace.num_roots == 10
    pace.spend(12)
    pace.refill(10, 0.1)
    assert pace.num_roots == 0 and pace.wait_s == pytest.approx(0.2)
    pace.refill(10, 0.3)
    assert pace.num_roots == 1


def test_prefixes_of_one_tenant_are_nobody_elses() -> None:
    engine = TenantEngine([Tenant("a"), Tenant("b")])
    text = prompt(3, 40)
    first = engine.open("a", text, 4)
    engine.finish()
    same, other = engine.open("a", text, 4), engine.open("b", text, 4)
    engine.finish()
    assert (engine.cached[first], engine.cached[other]) == (0, 0) and engine.cached[same] >= 36
    in_flight = engine.open("b", [*text, 1], 4)
    engine.finish()
    assert engine.cached[in_flight] >= 36, "its own are"
    salted = [engine.open("b", text, 4, salt=salt) for salt in (b"one", b"two")]
    engine.finish()
    again = engine.open("b", text, 4, salt=b"two")
    engine.finish()
    assert [engine.cached[handle] for handle in salted] == [0, 0] and engine.cached[again] >= 36


def test_made_up_drafters_push_out_nobody_elses() -> None:
    alice, bob = TenantAccount(Tenant("alice")), TenantAccount(Tenant("bob"))
    known = alice.drafter_id("edge")
    made_up = {bob.drafter_id(f"edge {number}") for number in range(500)} | {bob.drafter_id("edge")}
    assert len(made_up) == 16 and known not in made_up
    last = bob.drafter_id("edge 499")
    assert [bob.drafter_id(f"edge {number}") for number in range(490, 500)][-1] == last, "those in use keep theirs"
    assert alice.drafter_id("edge") == known


def test_what_a_tenant_used_is_counted() -> None:
    engine = TenantEngine([Tenant("a"), Tenant("b")], drafted=3)
    engine.open("a", prompt(1, 10), 20)
    engine.open("b", prompt(2, 5), 8)
    engine.finish()
    for name, num_prompt, num_tokens in (("a", 10, 20), ("b", 5, 8)):
        usage = engine.accounts[name].usage
        assert (usage.num_sessions, usage.prompt, usage.committed) == (1, num_prompt, num_tokens)
        rows = sum(step.roots[name] + step.nodes[name] for step in engine.steps)
        assert usage.verified == rows and usage.drafted > 0
