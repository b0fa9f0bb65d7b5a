"""A forward as a few kilobytes of numbers, for the ranks that compute it too.

Contexts are told as runs of consecutive slots, which are at most as many as KV blocks; masks as bits. The rows' own
slots are the last of their session's context and are not told again. All numbers are int32.
"""

import numpy as np
from numpy.typing import NDArray

from specedge.model.batch import BoolArray, IntArray, PackedBatch, Segment

Int32Array = NDArray[np.int32]

_NUM_HEAD = 5  # segments, rows, wanted rows, runs, numbers of masks
_CHAIN = -1  # in place of a mask's width


def encode_batch(batch: PackedBatch) -> Int32Array:
    """The batch as one array."""
    segments = batch.segments
    contexts = np.concatenate([segment.context_slots for segment in segments])
    starts = _run_starts(contexts, [len(segment.context_slots) for segment in segments])
    masks = [segment.mask.ravel() for segment in segments if segment.mask is not None]
    bits = _packed(np.concatenate(masks)) if masks else np.empty(0, dtype=np.int32)
    shapes = [
        (
            segment.num_rows,
            len(segment.context_slots),
            _CHAIN if segment.mask is None else segment.mask.shape[1],
            segment.tail_positions is not None,
        )
        for segment in segments
    ]
    parts: list[NDArray[np.int32] | IntArray] = [
        np.array((len(segments), len(batch.token_ids), len(batch.logits_rows), len(starts), len(bits))),
        np.array(shapes).ravel(),
        batch.token_ids,
        batch.positions,
        batch.logits_rows,
        contexts[starts],
        np.diff(starts, append=len(contexts)),
        bits,
        *(segment.tail_positions for segment in segments if segment.tail_positions is not None),
    ]
    return np.concatenate(parts, dtype=np.int32, casting="same_kind")


def decode_batch(message: Int32Array) -> PackedBatch:
    """The batch that `encode_batch` was given."""
    reader = _Reader(message)
    num_segments, num_rows, num_wanted, num_runs, num_bits = reader.take(_NUM_HEAD).tolist()
    shapes = reader.take(4 * num_segments).reshape(-1, 4).tolist()
    token_ids, positions, logits_rows = (reader.wide(count) for count in (num_rows, num_rows, num_wanted))
    starts, lengths = reader.wide(num_runs), reader.wide(num_runs)
    ends = lengths.cumsum()
    contexts = np.arange(lengths.sum()) + np.repeat(starts - ends + lengths, lengths)
    bits = np.unpackbits(reader.take(num_bits).view(np.uint8), bitorder="little").view(np.bool_)
    segments, own_slots = [], []
    for rows, num_context, width, has_tail in shapes:
        context, contexts = contexts[:num_context], contexts[num_context:]
        mask: BoolArray | None = None
        if width != _CHAIN:
            mask, bits = bits[: rows * width].reshape(rows, width), bits[rows * width :]
        tail = reader.wide(rows if width == _CHAIN else width) if has_tail else None
        segments.append(Segment(rows, context, mask, tail))
        own_slots.append(context[num_context - rows :])
    return PackedBatch(token_ids, positions, np.concatenate(own_slots), tuple(segments), logits_rows)


class _Reader:
    """Takes an array apart from its beginning."""

    def __init__(self, message: Int32Array) -> None:
        self._rest = message

    def take(self, count: int) -> Int32Array:
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def wide(self, count: int) -> IntArray:
        return self.take(count).astype(np.int64)


def _run_starts(contexts: IntArray, lengths: list[int]) -> IntArray:
    """Where in the contexts, laid end to end, a slot does not follow the one before it."""
    is_start = np.ones(len(contexts), dtype=np.bool_)
    is_start[1:] = np.diff(contexts) != 1
    is_start[np.cumsum(lengths)[:-1]] = True
    return is_start.nonzero()[0]


def _packed(bits: BoolArray) -> Int32Array:
    packed = np.packbits(bits, bitorder="little")
    padded = np.zeros(-(-len(packed) // 4) * 4, dtype=np.uint8)
    padded[: len(packed)] = packed
    return padded.view(np.int32)
