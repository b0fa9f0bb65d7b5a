"""How a forward's attention is divided among programs: arrays only, no tensors.

A tile is the packed rows a program holds; a split is a fixed piece of a context. A program takes consecutive splits of
one tile. One that takes all of them writes the result; otherwise each split's part of each row is written by itself
and merged afterwards. Which of the two happens changes the time only, never the result.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from specedge.model.attention_plan import AttentionPlan

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]

ITEM_FIELDS = 8
MERGE_FIELDS = 4


@dataclass(frozen=True, slots=True)
class Division:
    """The work of one KV head; all KV heads have the same.

    Attributes:
        items: [num_items, 8] segment, first packed row, first split, end of splits, first partial row (-1: the program
            takes all splits of its tile) and three zeros; longest first.
        merges: [num_merges, 4] segment, first packed row, number of splits, first partial row.
        num_partial_rows: rows of splits that are written by themselves.
    """

    items: Int32Array
    merges: Int32Array
    num_partial_rows: int


def divide(
    plan: AttentionPlan, *, group: int, tile_rows: int, split_size: int, max_share: int, max_partial_rows: int
) -> Division:
    """Divide a plan so that no program takes much more than its share, within the room for parts.

    Args:
        group: query heads per KV head.
        tile_rows: packed rows per program.
        split_size: tokens of context per split.
        max_share: programs per KV head that the device runs at once; each should take a like part of all splits.
        max_partial_rows: room for splits' parts.
    """
    num_packed = np.diff(plan.row_starts).astype(np.int64) * group
    num_tiles = -(-num_packed // tile_rows)
    num_splits = -(-np.diff(plan.context_starts).astype(np.int64) // split_size)
    share = -(-int(num_tiles @ num_splits) // max_share)
    num_partial = num_packed * num_splits
    # Longer shares leave fewer segments to be split: in the end none.
    while int(num_partial[num_splits > share].sum()) > max_partial_rows:
        share *= 2
    num_groups = -(-num_splits // share)
    is_split = num_groups > 1
    num_partial = np.where(is_split, num_partial, 0)
    first_partial = np.cumsum(num_partial) - num_partial

    segment, within = _numbered(num_tiles * num_groups)
    tile, number = np.divmod(within, num_groups[segment])
    first = number * num_splits[segment] // num_groups[segment]
    end = (number + 1) * num_splits[segment] // num_groups[segment]
    items = np.zeros((len(segment), ITEM_FIELDS), dtype=np.int32)
    items[:, 0] = segment
    items[:, 1] = tile * tile_rows
    items[:, 2] = first
    items[:, 3] = end
    partial = first_partial[segment] + tile * tile_rows * num_splits[segment]
    items[:, 4] = np.where(is_split[segment], partial, -1)

    segment, tile = _numbered(np.where(is_split, num_tiles, 0))
    merges = np.empty((len(segment), MERGE_FIELDS), dtype=np.int32)
    merges[:, 0] = segment
    merges[:, 1] = tile * tile_rows
    merges[:, 2] = num_splits[segment]
    merges[:, 3] = first_partial[segment] + tile * tile_rows * num_splits[segment]
    return Division(items[np.argsort(first - end, kind="stable")], merges, int(num_partial.sum()))


def max_tiles(num_rows: int, num_segments: int, *, group: int, tile_rows: int) -> int:
    """How many tiles any plan of so many rows and segments has at most."""
    return num_rows * group // tile_rows + num_segments


def max_items(num_tiles: int, max_share: int) -> int:
    """How many programs per KV head any plan of so many tiles is divided among at most.

    With W splits in all, a share is at least W / max_share, so that groups beyond each tile's first add up to less than
    max_share.
    """
    return num_tiles + max_share


def _numbered(counts: Int64Array) -> tuple[Int64Array, Int64Array]:
    """For counts (2, 3): owners (0, 0, 1, 1, 1) and numbers within each (0, 1, 0, 1, 2)."""
    owners = np.repeat(np.arange(len(counts)), counts)
    return owners, np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
