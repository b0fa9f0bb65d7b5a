"""A packed batch's attention as flat arrays, made once per forward and shared by all layers and backends."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from specedge.model.batch import IntArray, PackedBatch

Int32Array = npt.NDArray[np.int32]
UInt64Array = npt.NDArray[np.uint64]

WORD_BITS = 64


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """What every row attends to. Segments are numbered in row order; their entries lie end to end.

    A segment's context is its prefix, in position order from position 0 and seen by all its rows, and then its tail.

    Attributes:
        row_starts: [num_segments + 1] where each segment's rows begin.
        context_starts: [num_segments + 1] where each segment's context begins in `context_slots`.
        context_slots: [total_context] KV slots; the rows' own slots are the last of their segment's.
        num_tails: [num_segments] how many of the context are its tail.
        is_chain: [num_segments] the tail is the rows themselves, causal by index; their mask words are zero.
        mask_words: [num_rows, num_words] bit j of word w: the row sees tail token 64 w + j of its segment.
        positions: [num_rows] absolute positions.
        tail_starts: [num_segments + 1] where each segment's tail begins in `tail_positions`.
        tail_positions: [total_tail] absolute positions of the tail tokens, for sliding windows.
    """

    row_starts: Int32Array
    context_starts: Int32Array
    context_slots: Int32Array
    num_tails: Int32Array
    is_chain: npt.NDArray[np.bool_]
    mask_words: UInt64Array
    positions: Int32Array
    tail_starts: Int32Array
    tail_positions: Int32Array

    @property
    def num_rows(self) -> int:
        return len(self.positions)

    @property
    def num_segments(self) -> int:
        return len(self.num_tails)


def plan_of(batch: PackedBatch) -> AttentionPlan:
    """Flatten a batch. There is at least one mask word per row, also where all segments are chains."""
    segments = batch.segments
    row_starts = _starts([segment.num_rows for segment in segments])
    is_chain = np.array([segment.mask is None for segment in segments], dtype=np.bool_)
    num_tails = [segment.num_rows if segment.mask is None else segment.mask.shape[1] for segment in segments]
    tails: list[IntArray] = []
    for segment, start in zip(segments, row_starts.tolist(), strict=False):
        own = batch.positions[start : start + segment.num_rows]
        tails.append(own if segment.tail_positions is None else segment.tail_positions)
    num_masked = max([tail for tail, chain in zip(num_tails, is_chain, strict=True) if not chain], default=1)
    bits = np.zeros((len(batch.positions), -(-num_masked // WORD_BITS) * WORD_BITS), dtype=np.bool_)
    for segment, start in zip(segments, row_starts.tolist(), strict=False):
        if segment.mask is not None:
            bits[start : start + segment.num_rows, : segment.mask.shape[1]] = segment.mask
    return AttentionPlan(
        row_starts=row_starts,
        context_starts=_starts([len(segment.context_slots) for segment in segments]),
        context_slots=_joined([segment.context_slots for segment in segments]),
        num_tails=np.array(num_tails, dtype=np.int32),
        is_chain=is_chain,
        mask_words=np.packbits(bits, axis=1, bitorder="little").view("<u8"),
        positions=batch.positions.astype(np.int32),
        tail_starts=_starts(num_tails),
        tail_positions=_joined(tails),
    )


def _starts(lengths: list[int]) -> Int32Array:
    starts = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _joined(arrays: list[IntArray]) -> Int32Array:
    return np.concatenate(arrays, dtype=np.int32, casting="same_kind")
