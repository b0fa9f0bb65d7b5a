"""How a forward's attention is divided for FlashAttention, which knows ragged rows and causal masks but no trees.

- Chains of several rows are causal over their whole context.
- A tree's rows see their whole prefix, without any mask, and some of the tail; the two parts are merged afterwards.
- A chain of one row sees its whole context: it goes with the prefixes and has no tail.

With a sliding window, what a row of a tree sees of the prefix depends on its depth, which no such mask can say: there,
chains of every length are causal and trees are left to another backend.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from specedge.model.attention_plan import AttentionPlan, Int32Array, UInt64Array
from specedge.model.batch import IntArray

MAX_PADDED_SCORES = 1 << 18  # of a head, rows times tail tokens of trees computed together: 32 MiB with 32 heads


@dataclass(frozen=True, slots=True)
class RaggedPart:
    """Segments whose rows see all of some keys (or, if causal, all but those of later rows).

    Attributes:
        rows: [num_rows] rows of the batch, segment by segment.
        row_starts: [num_segments + 1] where each segment's rows begin.
        slots: [num_keys] KV slots, segment by segment.
        key_starts: [num_segments + 1] where each segment's keys begin.
    """

    rows: IntArray
    row_starts: Int32Array
    slots: Int32Array
    key_starts: Int32Array

    @property
    def max_rows(self) -> int:
        """Of a segment."""
        return int(np.diff(self.row_starts).max())

    @property
    def max_keys(self) -> int:
        """Of a segment."""
        return int(np.diff(self.key_starts).max())


@dataclass(frozen=True, slots=True)
class TailPart:
    """The tails of some trees, padded to the largest.

    Attributes:
        num_trees, max_rows, max_tail: the padded shape.
        rows: [num_trees * max_rows] rows of the batch; 0 where there is none.
        places: [num_tree_rows] where each row of these trees stands in `rows`, in the order of the prefix part.
        slots: [num_trees * max_tail] KV slots; 0 where there is none.
        words: [num_trees * max_rows, num_words] bit j of word w: the row sees tail token 64 w + j of its tree.
            Padding rows see token 0, so that no row sees nothing.
    """

    num_trees: int
    max_rows: int
    max_tail: int
    rows: Int32Array
    places: Int32Array
    slots: Int32Array
    words: UInt64Array


@dataclass(frozen=True, slots=True)
class FlashPlan:
    """A plan for layers without, or for those with a sliding window.

    Attributes:
        causal: chains; None: there are none.
        prefixes: trees, then chains of one row; None: there are none.
        is_empty: [rows of `prefixes`] rows without any prefix.
        tails: of the trees among `prefixes`, whose rows come first there, in this order.
    """

    causal: RaggedPart | None
    prefixes: RaggedPart | None
    is_empty: npt.NDArray[np.bool_]
    tails: list[TailPart]


def divide_for_flash(plan: AttentionPlan, *, is_windowed: bool) -> FlashPlan:
    """Divide a plan; with a sliding window its trees are left out."""
    num_rows = np.diff(plan.row_starts)
    is_causal = plan.is_chain & ((num_rows > 1) | is_windowed)
    trees = np.flatnonzero(~plan.is_chain & (not is_windowed))
    trees = trees[np.argsort(-plan.num_tails[trees], kind="stable")]  # like sizes together, for little padding
    unmasked = np.concatenate([trees, np.flatnonzero(plan.is_chain & ~is_causal)])
    num_prefix = np.diff(plan.context_starts) - np.where(plan.is_chain, 0, plan.num_tails)
    return FlashPlan(
        causal=_ragged(plan, np.flatnonzero(is_causal), np.diff(plan.context_starts)),
        prefixes=_ragged(plan, unmasked, num_prefix),
        is_empty=np.repeat(num_prefix[unmasked] == 0, num_rows[unmasked]),
        tails=[_tails(plan, batch) for batch in _batches(plan, trees)],
    )


def _ragged(plan: AttentionPlan, segments: IntArray, num_keys: Int32Array) -> RaggedPart | None:
    """All rows of some segments, with the first keys of each."""
    if not len(segments):
        return None
    rows, row_starts = _ranges(plan.row_starts[segments], np.diff(plan.row_starts)[segments])
    keys, key_starts = _ranges(plan.context_starts[segments], num_keys[segments])
    return RaggedPart(rows, row_starts, plan.context_slots[keys], key_starts)


def _batches(plan: AttentionPlan, trees: IntArray) -> list[IntArray]:
    """Trees in their order, as many together as padding allows."""
    num_rows, num_tails = np.diff(plan.row_starts).astype(np.int64), plan.num_tails.astype(np.int64)
    batches: list[list[int]] = []
    for tree in trees.tolist():
        batch = [*batches[-1], tree] if batches else [tree]
        if len(batch) == 1 or len(batch) * num_rows[batch].max() * num_tails[batch].max() > MAX_PADDED_SCORES:
            batches.append([tree])
        else:
            batches[-1] = batch
    return [np.array(batch) for batch in batches]


def _tails(plan: AttentionPlan, trees: IntArray) -> TailPart:
    num_rows, num_tails = np.diff(plan.row_starts)[trees], plan.num_tails[trees]
    max_rows, max_tail = int(num_rows.max()), int(num_tails.max())
    tree_rows, _ = _ranges(plan.row_starts[trees], num_rows)
    places, _ = _ranges(np.arange(len(trees)) * max_rows, num_rows)
    rows = np.zeros(len(trees) * max_rows, dtype=np.int32)
    rows[places] = tree_rows
    words = np.zeros((len(rows), -(-max_tail // 64)), dtype=np.uint64)
    words[:, 0] = 1
    words[places] = plan.mask_words[tree_rows, : words.shape[1]]
    tokens, _ = _ranges(plan.context_starts[trees + 1] - num_tails, num_tails)
    slots = np.zeros(len(trees) * max_tail, dtype=np.int32)
    slots[_ranges(np.arange(len(trees)) * max_tail, num_tails)[0]] = plan.context_slots[tokens]
    return TailPart(len(trees), max_rows, max_tail, rows, places.astype(np.int32), slots, words)


def _ranges(starts: IntArray | Int32Array, lengths: IntArray | Int32Array) -> tuple[IntArray, Int32Array]:
    """For starts (7, 0) and lengths (2, 3): numbers (7, 8, 0, 1, 2), and where each range begins (0, 2, 5)."""
    begins = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=begins[1:])
    return np.arange(begins[-1]) + np.repeat(starts - begins[:-1].astype(np.int64), lengths), begins
