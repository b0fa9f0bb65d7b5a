"""The physical bound against values worked out by hand.

The curve is 10 ms and 1 ms more for each row, whatever the context. With every second depth lost, a chain of n nodes
gives 2 - 2^-n tokens.
"""

import pytest

from specedge_bench.bound import (
    BoundError,
    no_draft,
    physical_bound,
    tokens_from_depths,
    tokens_from_points,
)
from specedge_bench.curves import Grid, StepCurve, roofline_curve
from specedge_bench.devices import DEVICES
from specedge_bench.model_shape import QWEN3_14B

CURVE = StepCurve("test", "none", "none", "float32", "test", Grid((1, 101), (128,), ((0.011,), (0.111,))))


def halves(num_nodes: int) -> float:
    return 2 - 0.5**num_nodes


def test_plain_decoding_is_one_token_a_step() -> None:
    bound = physical_bound(CURVE, 1, 128, max_nodes=0)
    assert bound.itl_s == pytest.approx(0.011)
    assert bound.tokens_per_s == pytest.approx(1 / 0.011)
    assert bound.reached(45.0) == pytest.approx(0.495)


def test_the_best_chain_without_a_network() -> None:
    # 1/11, 1.5/12, 1.75/13, 1.875/14 tokens per ms: the third is the most
    bound = physical_bound(CURVE, 1, 128, halves)
    assert bound.num_nodes == 2
    assert bound.tokens_per_s == pytest.approx(1750 / 13)
    assert bound.itl_s == pytest.approx(0.013 / 1.75)


def test_a_round_trip_asks_for_longer_chains() -> None:
    # with 60 ms: 1.9375/75 = 0.02583, 1.96875/76 = 0.02590, 1.984375/77 = 0.02577
    bound = physical_bound(CURVE, 1, 128, halves, rtt_s=0.060)
    assert bound.num_nodes == 5
    assert bound.round_s == pytest.approx(0.076)
    assert bound.tokens_per_s == pytest.approx(1968.75 / 76)


def test_trees_sent_ahead_hide_their_share_of_the_round_trip() -> None:
    bound = physical_bound(CURVE, 1, 128, rtt_s=0.060, hit_rate=0.75, max_nodes=0)
    assert bound.round_s == pytest.approx(0.011 + 0.015)


def test_groups_take_turns_while_the_others_travel() -> None:
    # together: 12 + 20 = 32 ms; in turn: max(2 * 11, 11 + 20) = 31 ms
    bound = physical_bound(CURVE, 2, 128, no_draft, rtt_s=0.020, max_nodes=0)
    assert (bound.num_groups, bound.round_s) == (2, pytest.approx(0.031))
    # without a round trip, one step of both is best
    assert physical_bound(CURVE, 2, 128, max_nodes=0).num_groups == 1


def test_uneven_groups() -> None:
    # 3 sessions in 2 groups: steps of 12 and 11 ms, round max(23, 12 + 11) = 23; one group: 13 + 11 = 24; three: 33
    bound = physical_bound(CURVE, 3, 128, rtt_s=0.011, max_nodes=0)
    assert (bound.num_groups, bound.round_s) == (2, pytest.approx(0.023))


def test_rows_beyond_the_free_ones_make_short_trees_at_many_sessions() -> None:
    """An A100-40 computes 150 rows while it reads the weights: 8 sessions have 18 rows each, 64 only 2."""
    curve = roofline_curve(DEVICES["A100-40"], QWEN3_14B)
    tokens = tokens_from_depths([800, 640, 512, 410, 328, 262, 210, 168], 1000)
    few = physical_bound(curve, 8, 512, tokens)
    many = physical_bound(curve, 64, 512, tokens)
    assert few.num_nodes == 8
    assert 8 * 9 <= 150
    assert many.num_nodes <= 2


def test_tokens_by_depth() -> None:
    tokens = tokens_from_depths([80, 60, 30], 100)
    assert [tokens(num_nodes) for num_nodes in (0, 1, 2, 3, 9)] == pytest.approx([1.0, 1.8, 2.4, 2.7, 2.7])


def test_tokens_by_points() -> None:
    tokens = tokens_from_points({4: 3.0, 8: 3.4})
    assert [tokens(num_nodes) for num_nodes in (0, 2, 4, 6, 8, 50)] == pytest.approx([1.0, 2.0, 3.0, 3.2, 3.4, 3.4])


def test_refusals_name_the_value() -> None:
    with pytest.raises(BoundError, match="depth 2 was accepted 81 times"):
        tokens_from_depths([80, 81], 100)
    with pytest.raises(BoundError, match="num_trees is 0"):
        tokens_from_depths([], 0)
    with pytest.raises(BoundError, match=r"2 nodes gave 3\.5 tokens"):
        tokens_from_points({2: 3.5})
    with pytest.raises(BoundError, match="sessions 0"):
        physical_bound(CURVE, 0, 128)
    with pytest.raises(BoundError, match=r"hit rate 1\.5"):
        physical_bound(CURVE, 1, 128, hit_rate=1.5)
