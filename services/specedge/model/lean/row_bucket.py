"""Fixed row counts: everything between two attentions is recorded once per count and then replayed.

A forward of n rows takes the smallest bucket that holds them; the other rows are padding that attention never sees, so
they reach neither the KV cache nor another row. On CUDA a piece is a graph, whose launches cost the host one call; on
other devices it is run again, with the same fixed buffers.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

import torch

from specedge.model.lean.blocks import Attend, Heads, LeanModel

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

ROW_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)


@dataclass(slots=True)
class Workspace:
    """Fixed memory for all that crosses the border of a piece; a bucket uses the first rows of it.

    One for all buckets and layers, since no two pieces run at once and attention has read its heads before the next
    piece overwrites them.
    """

    token_ids: torch.Tensor  # int64 [num_rows]
    positions: torch.Tensor  # int64 [num_rows]
    residual: torch.Tensor  # [num_rows, hidden]
    cos: torch.Tensor  # [num_rows, 1, head_dim]
    sin: torch.Tensor  # [num_rows, 1, head_dim]
    projected: torch.Tensor  # [num_rows, (num_heads + 2 num_kv_heads) * head_dim]
    rotated: torch.Tensor  # [num_rows, num_heads + num_kv_heads, head_dim]
    attended: torch.Tensor  # [num_rows, num_heads * head_dim]

    @classmethod
    def allocate(cls, model: LeanModel, num_rows: int) -> Self:
        """Zeros, so that padding rows hold numbers from the start."""
        spec = model.spec

        def zeros(*shape: int, dtype: torch.dtype = model.dtype) -> torch.Tensor:
            return torch.zeros((num_rows, *shape), dtype=dtype, device=model.device)

        return cls(
            token_ids=zeros(dtype=torch.int64),
            positions=zeros(dtype=torch.int64),
            residual=zeros(spec.hidden_size),
            cos=zeros(1, spec.head_dim),
            sin=zeros(1, spec.head_dim),
            projected=zeros((spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim),
            rotated=zeros(spec.num_heads + spec.num_kv_heads, spec.head_dim),
            attended=zeros(spec.num_heads * spec.head_dim),
        )

    def first(self, num_rows: int) -> Self:
        """The same memory, cut to its first rows."""
        return type(self)(*(getattr(self, name)[:num_rows] for name in self.__slots__))


class RowBucket:
    """The recorded pieces of one row count.

    Args:
        model: the lean model.
        workspace: of exactly the bucket's rows.
        pool: memory that the graphs of all buckets share for what stays inside a piece; None without CUDA.
    """

    def __init__(self, model: LeanModel, workspace: Workspace, pool: Any) -> None:
        self._model = model
        self._workspace = workspace
        self._pieces: list[tuple[Callable[[], object], Heads]] = []
        for layer in range(len(model.spec.layers)):
            self._pieces.append(record(partial(self._until_attention, layer), model.device, pool))
        self._finish, _ = record(self._after_last_attention, model.device, pool)

    def _until_attention(self, layer: int) -> Heads:
        model, space = self._model, self._workspace
        if layer == 0:
            cos, sin = model.rotation(space.positions)
            space.cos.copy_(cos)
            space.sin.copy_(sin)
            space.residual.copy_(model.embed(space.token_ids))
        else:
            model.after_attention(layer - 1, space.residual, space.attended)
        return model.before_attention(layer, space.residual, space.cos, space.sin, space.projected, space.rotated)

    def _after_last_attention(self) -> None:
        self._model.after_attention(len(self._pieces) - 1, self._workspace.residual, self._workspace.attended)

    def run(self, token_ids: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """The residual stream after the last layer, [num_rows of the bucket, hidden_size]; valid until the next run.

        Args:
            token_ids, positions: int64 [n], n at most the bucket's rows.
        """
        n, space = token_ids.shape[0], self._workspace
        space.token_ids[:n].copy_(token_ids, non_blocking=True)
        space.positions[:n].copy_(positions, non_blocking=True)
        for layer, (replay, (query, key, value)) in enumerate(self._pieces):
            replay()
            space.attended[:n].copy_(attend(layer, query[:n], key[:n], value[:n]))
        self._finish()
        return space.residual


def record(piece: Callable[[], Result], device: torch.device, pool: Any) -> tuple[Callable[[], object], Result]:
    """Record a piece that reads and writes fixed memory only.

    Returns:
        (replay, result): `replay` runs the piece again; `result` is what it returned, views of fixed memory.
    """
    result = piece()  # loads the kernels of this row count, which a recording must not do
    if device.type != "cuda":
        return piece, result
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph, pool=pool):
        result = piece()
    return graph.replay, result


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
    workspace = Workspace.allocate(model, max(row_counts))
    for num_rows in sorted(row_counts):
        try:
            buckets[num_rows] = RowBucket(model, workspace.first(num_rows), pool)
        except RuntimeError as error:
            logger.warning("%d rows and more run without graphs, which could not be recorded: %s", num_rows, error)
            break
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
