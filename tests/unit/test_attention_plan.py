"""The flat plan says of every row and token what the batch's segments say."""

import numpy as np
import pytest

from specedge.model.attention.self_test import Chain, Tree, random_batch
from specedge.model.attention_plan import plan_of
from specedge.model.batch import PackedBatch, Segment

RAGGED = (Chain(0, 1), Tree(5, 3), Chain(70, 9), Tree(130, 65, 70), Tree(0, 1), Chain(3, 200), Tree(9, 256))


@pytest.mark.parametrize("seed", range(5))
def test_a_ragged_batch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cases = [RAGGED[index] for index in rng.permutation(len(RAGGED))]
    batch = random_batch(rng, cases, num_slots=2000)
    plan = plan_of(batch)
    assert (plan.num_rows, plan.num_segments) == (len(batch.positions), len(cases))
    assert plan.positions.tolist() == batch.positions.tolist()
    for index, segment in enumerate(batch.segments):
        rows = slice(*plan.row_starts[index : index + 2])
        context = plan.context_slots[slice(*plan.context_starts[index : index + 2])]
        tail_positions = plan.tail_positions[slice(*plan.tail_starts[index : index + 2])]
        assert rows.stop - rows.start == segment.num_rows
        assert context.tolist() == segment.context_slots.tolist()
        assert batch.slots[rows].tolist() == context[-segment.num_rows :].tolist()
        assert len(tail_positions) == plan.num_tails[index]
        if segment.mask is None:
            assert plan.is_chain[index]
            assert plan.num_tails[index] == segment.num_rows
            assert not plan.mask_words[rows].any()
        else:
            assert not plan.is_chain[index]
            for row, sees in zip(plan.mask_words[rows], segment.mask, strict=True):
                bits = [bool(int(row[token // 64]) >> token % 64 & 1) for token in range(64 * len(row))]
                assert bits[: len(sees)] == sees.tolist()
                assert not any(bits[len(sees) :])
        own = batch.positions[rows] if segment.tail_positions is None else segment.tail_positions
        assert tail_positions.tolist() == own.tolist()


def test_words_hold_the_widest_tail() -> None:
    for num_rows, num_words in ((1, 1), (64, 1), (65, 2), (256, 4)):
        batch = random_batch(np.random.default_rng(0), [Chain(4, 300), Tree(4, num_rows)], num_slots=1000)
        assert plan_of(batch).mask_words.shape == (300 + num_rows, num_words)


def test_types_are_what_kernels_read() -> None:
    rows = np.arange(3, dtype=np.int64)
    plan = plan_of(PackedBatch(rows, rows, rows, (Segment(3, rows),), rows))
    for name in ("row_starts", "context_starts", "context_slots", "num_tails", "positions", "tail_starts"):
        assert getattr(plan, name).dtype == np.int32, name
    assert plan.tail_positions.dtype == np.int32
    assert plan.mask_words.dtype == np.uint64
    assert plan.mask_words.flags.c_contiguous
    assert plan.is_chain.tolist() == [True]
