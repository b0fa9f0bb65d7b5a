"""Division of attention among programs: every split of every row once, in room of its own, whatever the share."""

import random

import numpy as np
import pytest

from specedge.model.attention.division import divide, max_items, max_tiles
from specedge.model.attention.self_test import Chain, Tree, random_batch
from specedge.model.attention_plan import AttentionPlan, plan_of

TILE_ROWS, SPLIT_SIZE = 16, 32


def random_plan(seed: int) -> AttentionPlan:
    draw = random.Random(seed)
    kinds = (
        lambda: Chain(draw.choice((0, 1, 31, 32, 300, 900)), draw.choice((1, 2, 40))),
        lambda: Tree(draw.choice((1, 63, 64, 500)), draw.choice((1, 8, 32, 100)), draw.choice((0, 5))),
    )
    return plan_of(
        random_batch(np.random.default_rng(seed), [draw.choice(kinds)() for _ in range(draw.randint(1, 9))], 20_000)
    )


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize(("max_share", "max_partial_rows"), [(1, 10**6), (16, 10**6), (16, 400), (10**6, 10**6)])
def test_every_split_of_every_row_once(seed: int, max_share: int, max_partial_rows: int) -> None:
    plan = random_plan(seed)
    group = (1, 5, 8)[seed % 3]
    division = divide(
        plan,
        group=group,
        tile_rows=TILE_ROWS,
        split_size=SPLIT_SIZE,
        max_share=max_share,
        max_partial_rows=max_partial_rows,
    )
    num_packed = np.diff(plan.row_starts) * group
    num_splits = -(-np.diff(plan.context_starts) // SPLIT_SIZE)
    covered: dict[tuple[int, int], list[int]] = {}
    partial_rows: list[int] = []
    for segment, tile, first, end, partial, *rest in division.items.tolist():
        assert rest == [0, 0, 0]
        assert first < end
        covered.setdefault((segment, tile), []).extend(range(first, end))
        if partial < 0:
            assert (first, end) == (0, num_splits[segment])
            continue
        rows = min(TILE_ROWS, num_packed[segment] - tile)
        partial_rows += [partial + split * rows + row for split in range(first, end) for row in range(rows)]
    for segment, packed in enumerate(num_packed.tolist()):
        for tile in range(0, packed, TILE_ROWS):
            assert sorted(covered.pop((segment, tile))) == list(range(num_splits[segment]))
    assert not covered
    assert sorted(partial_rows) == list(range(division.num_partial_rows))
    assert division.num_partial_rows <= max_partial_rows
    merged = {(segment, tile): (splits, partial) for segment, tile, splits, partial in division.merges.tolist()}
    assert len(merged) == len(division.merges)
    assert merged == {
        (segment, tile): (num_splits[segment], partial)
        for segment, tile, _, _, partial, *_ in division.items.tolist()
        if partial >= 0
    }
    lengths = division.items[:, 3] - division.items[:, 2]
    assert (np.diff(lengths) <= 0).all()
    num_tiles = max_tiles(plan.num_rows, plan.num_segments, group=group, tile_rows=TILE_ROWS)
    assert len(division.items) <= max_items(num_tiles, max_share)
    assert len(division.merges) <= num_tiles


def test_a_long_context_among_short_ones_is_split() -> None:
    rng = np.random.default_rng(0)
    plan = plan_of(random_batch(rng, [Chain(32_000, 1), *[Chain(100, 1)] * 7], num_slots=40_000))
    division = divide(plan, group=5, tile_rows=64, split_size=512, max_share=16, max_partial_rows=10**6)
    assert set(division.merges[:, 0].tolist()) == {0}
    assert len(division.items) >= 16
    assert (division.items[:, 3] - division.items[:, 2]).max() <= 5  # of 63 + 7 splits, shared by 16 programs
