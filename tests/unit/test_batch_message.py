"""A batch told to other ranks is the batch, whatever it holds."""

import numpy as np
from packed_batches import mixed_batches

from specedge.model.batch import PackedBatch, Segment, chain
from specedge_verifier.batch_message import decode_batch, encode_batch


def assert_same(found: PackedBatch, batch: PackedBatch) -> None:
    for name in ("token_ids", "positions", "slots", "logits_rows"):
        np.testing.assert_array_equal(getattr(found, name), getattr(batch, name), strict=True)
    assert len(found.segments) == len(batch.segments)
    for own, given in zip(found.segments, batch.segments, strict=True):
        assert own.num_rows == given.num_rows
        np.testing.assert_array_equal(own.context_slots, given.context_slots, strict=True)
        for name in ("mask", "tail_positions"):
            one, other = getattr(own, name), getattr(given, name)
            assert (one is None) == (other is None)
            if other is not None:
                np.testing.assert_array_equal(one, other, strict=True)


def test_every_kind_of_segment() -> None:
    for batch in [chain(7), *mixed_batches(97)]:
        assert_same(decode_batch(encode_batch(batch)), batch)


def test_no_wanted_row() -> None:
    batch = chain(3)
    empty = PackedBatch(batch.token_ids, batch.positions, batch.slots, batch.segments, batch.logits_rows[:0])
    assert_same(decode_batch(encode_batch(empty)), empty)


def test_contexts_that_meet_are_told_apart() -> None:
    """The second context begins with the slot after the first one's last."""
    rows = np.arange(4, dtype=np.int64)
    segments = (Segment(2, rows[:2]), Segment(2, rows[2:]))
    batch = PackedBatch(rows + 10, np.array([0, 1, 0, 1]), rows, segments, rows[1::2])
    assert_same(decode_batch(encode_batch(batch)), batch)


def test_contexts_in_blocks_take_a_few_bytes_per_block() -> None:
    """Sessions of 1,000 tokens in scattered blocks of 16, each verifying 16 nodes."""
    num_sessions, num_context, num_rows, size = 8, 1008, 17, 16
    blocks = np.random.default_rng(0).permutation(num_sessions * num_context // size).reshape(num_sessions, -1)
    segments = []
    for own in blocks:
        slots = (own[:, None] * size + np.arange(size)).ravel()
        segments.append(Segment(num_rows, slots, np.tri(num_rows, dtype=bool)))
    total = num_sessions * num_rows
    rows = np.arange(total, dtype=np.int64)
    own_slots = np.concatenate([segment.context_slots[-num_rows:] for segment in segments])
    batch = PackedBatch(rows, rows, own_slots, tuple(segments), rows)
    encoded = encode_batch(batch)
    assert_same(decode_batch(encoded), batch)
    num_blocks, mask_bytes = blocks.size, num_sessions * num_rows**2 // 8
    assert encoded.nbytes < 8 * num_blocks + 12 * total + mask_bytes + 20 * num_sessions + 32
