"""Fixed row counts: everything between two attentions is recorded once per count and then replayed.

A forward of n rows takes the smallest bucket that holds them; the other rows are padding that attention never sees, so
they reach neither the KV cache nor another row. On CUDA a piece is a graph, whose launches cost the host one call; on
other devices it is run again, with the same fixed buffers.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from specedge.model.lean.blocks import Attend, Heads, LeanModel

logger = logging.getLogger(__name__)

ROW_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)


class RowBucket:
    """The recorded pieces of one row count.

    Args:
        model: the lean model.
        num_rows: rows of every piece.
        pool: memory that the graphs of all buckets share, since no two of them run at once; None without CUDA.
    """

    def __init__(self, model: LeanModel, num_rows: int, pool: Any) -> None:
        spec, device = model.spec, model.device
        self._token_ids = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._positions = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._attended = torch.zeros((num_rows, spec.num_heads * spec.head_dim), dtype=model.dtype, device=device)
        first, (self._residual, cos, sin, *heads) = record(partial(self._start, model), device, pool)
        self._pieces: list[tuple[Callable[[], object], Heads]] = [(first, (heads[0], heads[1], heads[2]))]
        for layer in range(1, len(spec.layers)):
            replay, between = record(partial(self._between, model, layer, cos, sin), device, pool)
            self._pieces.append((replay, (between[0], between[1], between[2])))
        last = len(spec.layers) - 1
        self._finish, _ = record(partial(self._end, model, last), device, pool)

    def _start(self, model: LeanModel) -> tuple[torch.Tensor, ...]:
        residual, (cos, sin) = model.embed(self._token_ids), model.rotation(self._positions)
        return residual, cos, sin, *model.before_attention(0, residual, cos, sin)

    def _between(self, model: LeanModel, layer: int, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
        model.after_attention(layer - 1, self._residual, self._attended)
        return model.before_attention(layer, self._residual, cos, sin)

    def _end(self, model: LeanModel, layer: int) -> tuple[torch.Tensor, ...]:
        model.after_attention(layer, self._residual, self._attended)
        return ()

    def run(self, token_ids: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """The residual stream after the last layer, [num_rows of the bucket, hidden_size]; valid until the next run.

        Args:
            token_ids, positions: int64 [n], n at most the bucket's rows.
        """
        n = token_ids.shape[0]
        self._token_ids[:n].copy_(token_ids, non_blocking=True)
        self._positions[:n].copy_(positions, non_blocking=True)
        for layer, (replay, (query, key, value)) in enumerate(self._pieces):
            replay()
            self._attended[:n].copy_(attend(layer, query[:n], key[:n], value[:n]))
        self._finish()
        return self._residual


def record(
    piece: Callable[[], tuple[torch.Tensor, ...]], device: torch.device, pool: Any
) -> tuple[Callable[[], object], tuple[torch.Tensor, ...]]:
    """Record a piece.

    Returns:
        (replay, outputs): calling `replay` computes the piece from the present content of its inputs into `outputs`.
    """
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            recorded = piece()
        return graph.replay, recorded
    outputs = piece()

    def replay() -> None:
        for output, result in zip(outputs, piece(), strict=True):
            output.copy_(result)

    return replay, outputs


@torch.inference_mode()
def record_buckets(model: LeanModel, row_counts: Sequence[int], max_bytes: int | None) -> dict[int, RowBucket]:
    """Record buckets from the smallest up, as far as memory allows.

    Args:
        row_counts: the buckets wanted.
        max_bytes: device memory that the graphs may take; a bucket that exceeds it is given up with all larger ones.

    Returns:
        The buckets by their number of rows, ascending. Rows beyond the largest run without one.
    """
    started, free = time.monotonic(), free_bytes(model.device)
    pool = torch.cuda.graph_pool_handle() if model.device.type == "cuda" else None
    buckets: dict[int, RowBucket] = {}
    for num_rows in sorted(row_counts):
        buckets[num_rows] = RowBucket(model, num_rows, pool)
        if max_bytes is not None and free - free_bytes(model.device) > max_bytes:
            del buckets[num_rows]
            logger.warning(
                "graphs of %d rows and more exceed the %.0f MiB allowed and run without", num_rows, max_bytes / 2**20
            )
            break
    logger.info(
        "recorded row buckets %s: %.1f s, %.0f MiB",
        ", ".join(map(str, buckets)) or "none",
        time.monotonic() - started,
        (free - free_bytes(model.device)) / 2**20,
    )
    return buckets


def free_bytes(device: torch.device) -> int:
    """Device memory that nobody holds; 0 on the CPU, where nothing is recorded in memory of its own."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
