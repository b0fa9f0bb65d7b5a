"""The simulator: its own arithmetic, and that the product's code does in virtual time what it must."""

import json
from math import exp, log

import pytest
from simulated import scenario

from specedge.sampling import SamplingParams
from specedge.wire.channel import FRAMING_BYTES
from specedge.wire.codec import encode_open, encode_response
from specedge.wire.draft_codec import DraftEncoder
from specedge.wire.messages import DraftNodes, OpenSession, Verdict
from specedge_bench.curves import straight_curve
from specedge_bench.network.profiles import NetworkProfile, network_profile
from specedge_bench.network.shape import Shape
from specedge_bench.simulation.acceptance_trace import (
    NOT_AMONG,
    AcceptanceTrace,
    TraceError,
    list_traces,
    load_trace,
    synthetic_trace,
    write_trace,
)
from specedge_bench.simulation.events import DeviceClock, EventQueue
from specedge_bench.simulation.link import Link
from specedge_bench.simulation.message_bytes import draft_bytes, open_bytes, verdict_bytes
from specedge_bench.simulation.result import Answer, burst_gaps, percentiles_ms, token_gaps
from specedge_bench.simulation.scenario import Replayed, ScenarioError
from specedge_bench.simulation.shard import run_shard
from specedge_bench.simulation.simulation import result_of, simulate
from specedge_bench.simulation.workload import users_of

NEVER = AcceptanceTrace("never", "nothing agrees", ((log(0.5), log(0.3)),) * 7, (NOT_AMONG,) * 7)
ALWAYS = AcceptanceTrace("always", "all agrees", ((log(0.98), log(0.01)),) * 7, (0,) * 7)


def test_events_run_in_order_of_time_and_of_arrival_on_ties():
    events, seen = EventQueue(), []
    events.at(2.0, lambda: seen.append(("late", events.now_s)))
    events.at(1.0, lambda: seen.append(("first", events.now_s)))
    events.at(1.0, lambda: events.at(0.5, lambda: seen.append(("overdue", events.now_s))))
    events.run()
    assert seen == [("first", 1.0), ("overdue", 1.0), ("late", 2.0)]


def test_device_clock_runs_ahead_inside_a_step_only():
    events = EventQueue()
    clock = DeviceClock(events)
    clock.work(0.25)
    clock.work(0.5)
    assert clock() == 0.75
    assert clock.take_step() == 0.75
    assert clock() == 0.0
    assert clock.busy_s == 0.75


def test_link_delays_without_overtaking_and_counts_bytes():
    events, arrived = EventQueue(), []
    link = Link(events, Shape(delay_s=0.010, jitter_s=0.005), 3)
    for index in range(50):
        events.at(index * 1e-4, lambda index=index: link.send(100, lambda: arrived.append((index, events.now_s))))
    events.run()
    assert [index for index, _ in arrived] == list(range(50))
    assert all(0.005 <= at_s - index * 1e-4 <= 0.015 + 50e-4 for index, at_s in arrived)
    assert len({round(at_s, 9) for _, at_s in arrived}) > 5
    assert link.num_bytes == 5000


def test_a_slow_line_sends_one_message_after_the_other():
    events, arrived = EventQueue(), []
    link = Link(events, Shape(delay_s=0.010, bytes_per_s=10_000), 0)
    for _ in range(3):
        link.send(948, lambda: arrived.append(events.now_s))  # with TCP and IP headers 1,000 bytes
    events.run()
    assert arrived == pytest.approx([0.110, 0.210, 0.310])


def test_a_lost_message_holds_up_the_stream_for_its_repetition():
    events, arrived = EventQueue(), []
    link = Link(events, Shape(delay_s=0.010, loss=0.4), 5)
    for index in range(200):
        events.at(60.0 * index, lambda index=index: link.send(100, lambda: arrived.append(events.now_s - 60 * index)))
    events.run()
    timer_s = 0.020 + 0.2  # a round trip and Linux's least timer, which doubles with every loss of the same packet
    on_time = sum(delay_s < 0.011 for delay_s in arrived)
    assert 0.5 < on_time / 200 < 0.7
    assert any(delay_s == pytest.approx(0.010 + timer_s) for delay_s in arrived)
    assert any(delay_s == pytest.approx(0.010 + 3 * timer_s) for delay_s in arrived)


def test_messages_have_the_bytes_of_real_ones():
    prompt = tuple(range(120_000, 120_200))
    sampling = SamplingParams(temperature=0.0, seed=7, max_tokens=64, ignore_eos=True)
    opening = OpenSession("12", prompt, (), sampling, "", "edge-1", "specedge")
    assert open_bytes(opening) == encode_open(opening).ByteSize() + FRAMING_BYTES
    verdict = Verdict(1000, (101_000, 140_000, 99_000), "length", 500, 30_000, 12, 2, 9)
    assert verdict_bytes(verdict) == encode_response(verdict).ByteSize() + FRAMING_BYTES
    nodes = DraftNodes([140_000, 99_000, 17_000], [~1000, 0, 0], [-0.1, -0.5, -2.0])
    (message,) = DraftEncoder().encode(nodes)
    assert draft_bytes(DraftEncoder(), nodes) == message.ByteSize() + FRAMING_BYTES


def test_token_gaps_share_a_burst_and_tpot_leaves_the_first_one_out():
    answer = Answer(1.0, [(1.5, 2), (1.8, 3), (2.0, 1)])
    assert token_gaps([answer]) == pytest.approx([0.1, 0.1, 0.1, 0.2])
    assert answer.ttft_s == 0.5
    assert answer.tpot_s == pytest.approx(0.5 / 4)
    assert Answer(0.0, [(1.0, 5)]).tpot_s is None
    assert percentiles_ms([0.001, 0.002, 0.003]) == pytest.approx((2.0, 3.0, 3.0))
    assert burst_gaps([answer]) == pytest.approx([0.3, 0.2])


def test_synthetic_trace_agrees_as_often_as_it_claims():
    trace = synthetic_trace((0.7, 0.2), num_positions=20_000)
    assert trace.agreement == pytest.approx([0.7, 0.2], abs=0.015)
    assert [exp(claim) for claim in trace.log_probs[0]] == pytest.approx([0.7, 0.2])
    kept = synthetic_trace((0.7, 0.2), persistence=0.6, num_positions=20_000)
    assert kept.agreement == pytest.approx([0.7, 0.2], abs=0.03)
    equal = sum(left == right for left, right in zip(kept.ranks, kept.ranks[1:], strict=False)) / 20_000
    # With 0.6 the rank is kept; else drawn anew, and equal by chance with 0.7^2 + 0.2^2 + 0.1^2.
    assert equal == pytest.approx(0.6 + 0.4 * 0.54, abs=0.02)


def test_trace_survives_its_file(tmp_path):
    trace = AcceptanceTrace("a", "b", ((-0.25, -3.0), (-1.0, -1.5)), (1, NOT_AMONG))
    write_trace(tmp_path / "a.json", trace)
    assert load_trace(str(tmp_path / "a.json")) == trace


def test_recorded_traces_are_found_and_belong_to_a_useful_draft():
    names = [name for name in list_traces() if name.startswith("embedded")]
    assert names == ["embedded-t0", "embedded-t0.7", "embedded-t1"]
    best = [load_trace(name).agreement[0] for name in names]
    assert best == sorted(best, reverse=True)
    assert 0.4 < best[-1] < best[0] < 0.9


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere", "no such file"),
        ("synthetic:0.2/0.7", "falling"),
        ("synthetic:0.5@1", "persistence is 1"),
        ("synthetic:x", "could not convert"),
    ],
)
def test_bad_trace_names_are_refused(name, reason):
    with pytest.raises(TraceError, match=reason):
        load_trace(name)


def test_trace_of_a_newer_schema_is_refused(tmp_path):
    path = tmp_path / "new.json"
    path.write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(TraceError, match="schema 99 is newer than 1"):
        load_trace(str(path))


def test_plain_decoding_takes_one_step_per_token():
    result = simulate(scenario(system="autoregressive", network=network_profile("rtt60")))
    assert result.num_tokens == 48
    assert result.itl_ms == pytest.approx((30.0, 30.0, 30.0))
    assert result.ttft_ms[0] == pytest.approx(90.0)  # one way, one step, one way
    assert result.wall_s == pytest.approx(0.060 + 48 * 0.030)
    assert result.tokens_per_verification == 1.0
    assert result.verifier_busy_s == pytest.approx(48 * 0.030)


def test_poisson_answers_are_all_finished():
    result = simulate(scenario(system="autoregressive", num_sessions=20, arrival_rate=5.0))
    assert result.num_answers == 20
    assert result.num_tokens == 20 * 48
    assert 2.0 < result.wall_s < 10.0


def test_a_draft_that_is_always_right_is_committed_whole():
    result = simulate(scenario(trace=ALWAYS, mode="off", batch_type="dynamic", max_tokens=90))
    assert result.tokens_per_verification > 6
    worthless = simulate(scenario(trace=NEVER))
    assert worthless.tokens_per_verification == 1.0
    assert worthless.tpot_ms < 33.0  # never much worse than plain decoding


@pytest.mark.parametrize("mode", ["streamed", "off", "included", "excluded"])
def test_every_mode_answers_in_full_and_gains(mode):
    is_guessing = mode in ("included", "excluded")  # and is published with a verifier that waits for every tree
    batch_type = "dynamic" if is_guessing else "ready"
    result = simulate(scenario(mode=mode, batch_type=batch_type, network=network_profile("rtt15"), requests_per_user=4))
    assert result.num_tokens == 4 * 48
    assert result.tpot_ms < 20.0
    assert result.num_preemptions == 0
    assert (result.guesses_hit > 0) == is_guessing


def test_guesses_of_an_always_right_draft_come_true():
    result = simulate(scenario(trace=ALWAYS, mode="excluded", batch_type="dynamic", max_tokens=90))
    assert result.guesses_hit > result.guesses_missed


def test_a_draft_step_that_outlasts_the_last_answer_is_paid_until_then():
    result = simulate(scenario(draft_curve=straight_curve("10000ms"), max_tokens=8))
    assert result.wall_s < 1.0
    assert result.draft_busy == pytest.approx(1.0)


def test_server_only_drafts_on_the_verifiers_device():
    result = simulate(scenario(system="server-only", num_sessions=4))
    assert result.tokens_per_verification > 2
    assert 0 < result.draft_busy_s < result.verifier_busy_s
    assert result.verifier_busy <= 1.0 + 1e-9
    assert result.tpot_ms < 25.0


def test_the_seed_decides_everything():
    network = NetworkProfile("bad", 15.0, jitter_ms=4.0, up_mbit_s=1.0, loss=0.01)
    settings = {"num_sessions": 6, "num_edges": 2, "num_verifiers": 2, "network": network, "length_spread": 0.25}
    first, again = simulate(scenario(**settings, seed=5)), simulate(scenario(**settings, seed=5))
    assert first == again
    assert simulate(scenario(**settings, seed=6)) != first


def test_every_system_is_asked_the_same():
    asked = {
        system: users_of(scenario(system=system, num_sessions=9, num_edges=4, arrival_rate=3.0, length_spread=0.3))
        for system in ("autoregressive", "server-only", "specedge")
    }
    assert asked["autoregressive"] == asked["server-only"] == asked["specedge"]
    users = asked["specedge"]
    assert [user.edge for user in users] == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert [user.arrival_s for user in users] == sorted({user.arrival_s for user in users})
    assert len({user.requests[0].num_answer_tokens for user in users}) > 3


def test_what_is_replayed_has_the_given_lengths_and_places():
    trace = AcceptanceTrace(
        "half", "the first half agrees", ((log(0.98), log(0.01)),) * 100, (0,) * 50 + (NOT_AMONG,) * 50
    )
    easy, hard = Replayed(20, 45, 0), Replayed(20, 45, 50)
    results = [
        simulate(scenario(trace=trace, num_sessions=2, replayed=((request,), (request,)))) for request in (easy, hard)
    ]
    assert [result.num_tokens for result in results] == [90, 90]
    assert results[0].tokens_per_verification > 3 * results[1].tokens_per_verification


def test_verifiers_have_no_influence_on_each_other():
    both = scenario(num_sessions=8, num_edges=4, num_verifiers=2, length_spread=0.2)
    outcomes = [run_shard(both, index) for index in range(2)]
    assert [{answer.edge for answer in outcome.answers} for outcome in outcomes] == [{0, 2}, {1, 3}]
    assert result_of(both, outcomes) == simulate(both)


def test_more_verifiers_than_edges_are_refused():
    with pytest.raises(ScenarioError, match="num_verifiers is 3, num_edges only 2"):
        scenario(num_edges=2, num_verifiers=3)


@pytest.mark.parametrize(
    ("field", "value"),
    [("system", "magic"), ("num_edges", 0), ("edge_host_s", -1.0), ("length_spread", 1.0), ("arrival_rate", 0.0)],
)
def test_scenarios_that_make_no_sense_are_refused(field, value):
    with pytest.raises(ScenarioError, match=f"{field} is"):
        scenario(**{field: value})


def test_drafting_beside_the_target_costs_what_a_draft_step_costs():
    results = [simulate(scenario(system="server-only", trace=ALWAYS, edge_host_s=host_s)) for host_s in (0.0, 0.002)]
    assert results[1].draft_busy_s > results[0].draft_busy_s
    assert results[1].tokens_per_s < results[0].tokens_per_s


@pytest.mark.parametrize("changes", [{}, {"system": "server-only"}, {"mode": "included"}])
def test_a_warm_up_is_not_counted(changes):
    asked = tuple((Replayed(32, 48, 500 * user),) for user in range(3))
    cold, warm = (
        simulate(scenario(num_sessions=3, replayed=asked, warm_up=before, **changes)) for before in ((), asked)
    )
    assert warm.num_answers == cold.num_answers == 3
    assert warm.num_tokens == cold.num_tokens == 144
    assert warm.wall_s < 1.7 * cold.wall_s
    assert warm.verifier_busy < 1.01
    assert warm.draft_busy < 1.01
    assert warm.guesses_hit + warm.guesses_missed < 1.7 * (cold.guesses_hit + cold.guesses_missed) + 1


def test_replayed_requests_need_a_list_for_each_user():
    with pytest.raises(ScenarioError, match="replayed has 1 users"):
        scenario(num_sessions=2, replayed=((Replayed(4, 4, 0),),))
    with pytest.raises(ScenarioError, match="warm_up has 1 users; a closed loop"):
        scenario(num_sessions=1, arrival_rate=1.0, warm_up=((Replayed(4, 4, 0),),))
