"""Fixed row counts: a whole forward is recorded once per count, and replayed for every batch that fits.

A forward of n rows takes the smallest bucket that holds them. The other rows are padding: attention never reads them,
their keys and values go to a slot of their own, and no row of a product depends on another row, so they reach nothing.
On CUDA a bucket is one graph, launched with one call; on other devices the same operations are run again, on the same
fixed memory.

All inputs (token ids, positions, slots, the attention's plan) lie in one reserved state, which is shared by the buckets
and filled with one copy before each replay; the copy waits in the stream for the forward before it.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from specedge.model.attention.for_lean import attention_over
from specedge.model.attention.interface import RecordableBackend, ReservedState, Room
from specedge.model.attention.placement import Table
from specedge.model.attention_plan import AttentionPlan, plan_of
from specedge.model.batch import IntArray, PackedBatch, Segment
from specedge.model.kv_cache import KVCache
from specedge.model.lean.blocks import LeanModel

logger = logging.getLogger(__name__)

ROW_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)

# A plan beyond these runs without a graph.
_MAX_CONTEXT = 1 << 22  # slots of all sessions together
_MAX_TAIL = 1 << 13  # tail tokens of all sessions together
_MAX_WORDS = 8  # of 64 tail tokens each, in the largest tail

# Replay and recording run the same kernels; what is looked for is inputs that were recorded instead of read.
_MAX_DIFFERENCE = 0.05  # of the largest value


class RowBuckets:
    """The recorded forwards of one model.

    Args:
        model, cache: the cache's last slot belongs to padding rows alone; no session owns a slot yet.
        backend: of the model's attention.
        row_counts: the buckets wanted.
        max_bytes: device memory they may take; a bucket that exceeds it is given up with all larger ones.
    """

    def __init__(
        self,
        model: LeanModel,
        cache: KVCache,
        backend: RecordableBackend,
        row_counts: Sequence[int],
        max_bytes: int | None,
    ) -> None:
        self._forward = FixedForward(model, cache, backend, max(row_counts))
        self._replays = record_forwards(self._forward, sorted(row_counts), max_bytes)
        self.row_counts = tuple(self._replays)

    def run(self, batch: PackedBatch) -> torch.Tensor | None:
        """The residual stream of the wanted rows after the last layer; None where no bucket takes the batch."""
        num_rows = self.bucket_rows(len(batch.token_ids))
        if num_rows is None:
            return None
        plan = plan_of(batch)
        if not self._forward.room.holds(Room.of(plan)):
            return None
        self._forward.fill(num_rows, batch, plan)
        return self._replays[num_rows]().index_select(0, self._forward.wanted(len(batch.logits_rows)))

    def bucket_rows(self, num_rows: int) -> int | None:
        """The smallest bucket that holds so many rows."""
        return next((rows for rows in self.row_counts if rows >= num_rows), None)


class FixedForward:
    """All layers of a model over inputs in fixed memory.

    Args:
        model, cache, backend: as for `RowBuckets`.
        max_rows: most rows of a forward.
    """

    def __init__(self, model: LeanModel, cache: KVCache, backend: RecordableBackend, max_rows: int) -> None:
        self.model = model
        self._cache = cache
        self._backend = backend
        self.room = Room(
            num_rows=max_rows,
            num_segments=max_rows,
            num_context=min(max_rows * model.spec.max_positions, _MAX_CONTEXT),
            num_tail=_MAX_TAIL,
            num_words=_MAX_WORDS,
        )
        inputs = [
            Table("token_ids", (max_rows,), is_wide=True),
            Table("row_positions", (max_rows,), is_wide=True),
            Table("slots", (max_rows,), is_wide=True),
            Table("wanted", (max_rows,), is_wide=True),
        ]
        self._state = backend.reserve(self.room, model.device, inputs)
        self._states: dict[int, ReservedState] = {}

    def fill(self, num_rows: int, batch: PackedBatch, plan: AttentionPlan) -> None:
        """Put a batch into the memory that a forward of so many rows reads."""
        inputs = {
            "token_ids": _padded(batch.token_ids, num_rows, 0),
            "row_positions": _padded(batch.positions, num_rows, 0),
            "slots": _padded(batch.slots, num_rows, self._cache.num_slots - 1),
            "wanted": batch.logits_rows,
        }
        self._backend.fill(self._of_rows(num_rows), plan, inputs)

    def compute(self, num_rows: int) -> torch.Tensor:
        """The residual stream [num_rows, hidden_size] after the last layer; of padding, no defined values."""
        state = self._of_rows(num_rows)
        slots = state.tables["slots"][:num_rows]
        attend = attention_over(self._backend, state, slots, self.model.spec, self._cache)
        tables = state.tables
        return self.model.hidden(tables["token_ids"][:num_rows], tables["row_positions"][:num_rows], attend)

    def wanted(self, num_wanted: int) -> torch.Tensor:
        """int64 [num_wanted] the rows of the batch whose logits are wanted."""
        return self._state.tables["wanted"][:num_wanted]

    def _of_rows(self, num_rows: int) -> ReservedState:
        if num_rows not in self._states:
            self._states[num_rows] = self._backend.narrowed(self._state, num_rows)
        return self._states[num_rows]


def _padded(array: IntArray, length: int, filler: int) -> IntArray:
    padded = np.full(length, filler, dtype=np.int64)
    padded[: len(array)] = array
    return padded


Replay = Callable[[], torch.Tensor]
"""Computes the batch that was filled in last; the result is valid until the next replay."""


@torch.inference_mode()
def record_forwards(forward: FixedForward, row_counts: Sequence[int], max_bytes: int | None) -> dict[int, Replay]:
    """Record buckets from the smallest up, as far as memory allows.

    Returns:
        What replays each bucket, by its number of rows, ascending. Rows beyond the largest run without one.
    """
    device = forward.model.device
    started_s, free, pool, stream = time.monotonic(), unheld_bytes(device), None, None
    if device.type == "cuda":
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    replays: dict[int, Replay] = {}
    for num_rows in row_counts:
        try:
            replay = record(forward, num_rows, pool, stream)
            refuse_wrong(forward, num_rows, replay)
        # Whatever a compiler, its driver or the device raises, forwards without graphs still serve.
        except Exception as error:
            logger.warning("%d rows and more run without graphs, which could not be recorded: %s", num_rows, error)
            break
        if max_bytes is not None and free - unheld_bytes(device) > max_bytes:
            logger.warning(
                "graphs of %d rows and more exceed the %.0f MiB allowed and run without", num_rows, max_bytes / 2**20
            )
            break
        replays[num_rows] = replay
    logger.info(
        "recorded row buckets %s: %.1f s, %.0f MiB",
        ", ".join(map(str, replays)) or "none",
        time.monotonic() - started_s,
        (free - unheld_bytes(device)) / 2**20,
    )
    return replays


def record(forward: FixedForward, num_rows: int, pool: Any, stream: Any) -> Replay:
    """Record one bucket.

    Args:
        pool: memory that the graphs of all buckets share, since no two run at once; None without CUDA.
        stream: to record on; None without CUDA.
    """
    fill_with_chains(forward, num_rows, 1)
    forward.compute(num_rows)  # compiles and loads the kernels of this row count, which a recording must not do
    if pool is None:
        return lambda: forward.compute(num_rows)
    graph = torch.cuda.CUDAGraph()
    # The outer `stream` brings the present one back where a recording fails midway.
    with torch.cuda.stream(stream), torch.cuda.graph(graph, pool=pool, stream=stream):
        result = forward.compute(num_rows)

    def replay() -> torch.Tensor:
        graph.replay()
        return result

    return replay


def refuse_wrong(forward: FixedForward, num_rows: int, replay: Replay) -> None:
    """Compare a replay with the same forward unrecorded, on another batch than the one it was recorded with.

    Raises:
        RuntimeError: they differ.
    """
    num_filled = fill_with_chains(forward, num_rows, 2)
    expected = forward.compute(num_rows)[:num_filled].float().clone()
    found = replay()[:num_filled].float()
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    if not difference <= _MAX_DIFFERENCE * largest:  # NaN is not
        raise RuntimeError(f"a replay differs by {difference:.2g} where values reach {largest:.2g}")


def fill_with_chains(forward: FixedForward, num_rows: int, num_chains: int) -> int:
    """Fill in chains of made-up tokens in the first slots, one row short of the bucket; returns the number of rows."""
    rows = np.arange(max(1, num_rows - 1))
    parts = [part for part in np.array_split(rows, num_chains) if len(part)]
    batch = PackedBatch(
        token_ids=(rows * 7 + num_chains) % forward.model.spec.vocab_size,
        positions=np.concatenate([np.arange(len(part)) for part in parts]),
        slots=rows,
        segments=tuple(Segment(len(part), part) for part in parts),
        logits_rows=rows,
    )
    forward.fill(num_rows, batch, plan_of(batch))
    return len(rows)


def unheld_bytes(device: torch.device) -> int:
    """Device memory that neither a tensor nor a graph holds; 0 on the CPU, where recording takes none."""
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()  # what torch keeps for later would count as held
    return torch.cuda.mem_get_info(device)[0]
