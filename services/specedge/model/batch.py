"""What a forward takes: rows of many sessions packed end to end, each session attending to its own slots only."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class Segment(NamedTuple):
    """One session's rows in a packed batch.

    Attributes:
        num_rows: how many rows of the batch belong to the session; its rows are consecutive.
        context_slots: [num_context] KV slots of every token the rows may attend to. First the prefix, in position
            order from position 0, visible to every row; then the tail. The rows' own slots are the last num_rows.
        mask: [num_rows, num_tail] which tail tokens each row sees (ancestors and itself). None: the rows are the tail
            and form a causal chain.
        tail_positions: [num_tail] absolute positions of the tail tokens, needed by sliding-window layers when the
            tail is more than the rows themselves. None: the tail is the rows.
    """

    num_rows: int
    context_slots: IntArray
    mask: BoolArray | None = None
    tail_positions: IntArray | None = None


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One forward.

    Attributes:
        token_ids: [num_rows] input tokens.
        positions: [num_rows] absolute positions (prefix length + depth, not the row number).
        slots: [num_rows] KV slot each row's key and value are written to.
        segments: the sessions in row order; their num_rows add up to the number of rows.
        logits_rows: [num_wanted] rows whose logits are wanted.
    """

    token_ids: IntArray
    positions: IntArray
    slots: IntArray
    segments: tuple[Segment, ...]
    logits_rows: IntArray


def chain(num_rows: int) -> PackedBatch:
    """A causal chain in the first slots with all logits wanted, for warm-up before any session owns a slot."""
    rows = np.arange(num_rows, dtype=np.int64)
    return PackedBatch(np.zeros_like(rows), rows, rows, (Segment(num_rows, rows),), rows)
