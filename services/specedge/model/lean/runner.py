"""Runs a lean model over paged KV, with the interface of `specedge.model.runner.ModelRunner`."""

from collections.abc import Callable, Sequence

import torch

from specedge.model.batch import IntArray, PackedBatch
from specedge.model.kv_cache import KVCache
from specedge.model.lean.blocks import Attend, LeanModel
from specedge.model.lean.row_bucket import RowBucket, record_buckets
from specedge.model.lean.spec import ModelSpec
from specedge.model.lean.weights import ModelWeights
from specedge.model.paged_attention import PagedContext

PrepareAttention = Callable[[PackedBatch], Attend]
"""Called once per forward: turns the batch into what all layers' attention needs."""


class LeanRunner:
    """A lean model with its KV cache.

    Args:
        spec, weights: of the same model; the weights decide device and dtype.
        num_slots: size of the KV cache, in tokens.
        make_attention: an attention backend for this model and cache.
        row_buckets: row counts whose forward is recorded now and replayed later; none where recording does not pay.
        max_graph_bytes: device memory the recorded forwards may take; None: no bound.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: ModelWeights,
        num_slots: int,
        *,
        make_attention: Callable[[ModelSpec, KVCache, torch.device], PrepareAttention] | None = None,
        row_buckets: Sequence[int] = (),
        max_graph_bytes: int | None = None,
    ) -> None:
        self.model = LeanModel(spec, weights)
        self.device: torch.device = self.model.device
        self.vocab_size: int = spec.vocab_size
        self.cache = KVCache(
            num_layers=len(spec.layers),
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            num_slots=num_slots,
            dtype=self.model.dtype,
            device=self.device,
        )
        self._prepare = (make_attention or reference_attention)(spec, self.cache, self.device)
        self.row_buckets: dict[int, RowBucket] = {}
        if row_buckets:
            self.row_buckets = record_buckets(self.model, row_buckets, max_graph_bytes)

    @property
    def num_slots(self) -> int:
        return self.cache.num_slots

    @torch.inference_mode()
    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Compute keys and values of all rows and the logits of the wanted ones.

        Returns:
            float32 [num_wanted, vocab_size] on the model's device.
        """
        attend = self._prepare(batch)
        token_ids, positions, wanted = (
            torch.from_numpy(array).to(self.device, non_blocking=True)
            for array in (batch.token_ids, batch.positions, batch.logits_rows)
        )
        rows = self.bucket_rows(len(batch.token_ids))
        if rows is None:
            return self.model.forward(token_ids, positions, attend, wanted)
        residual = self.row_buckets[rows].run(token_ids, positions, attend)
        return self.model.logits(residual.index_select(0, wanted))

    def bucket_rows(self, num_rows: int) -> int | None:
        """The smallest bucket that holds so many rows; None: the forward runs without one."""
        return next((rows for rows in self.row_buckets if rows >= num_rows), None)

    @torch.inference_mode()
    def copy_kv(self, source_slots: IntArray, target_slots: IntArray) -> None:
        """Move accepted tokens' keys and values to their final slots (keys carry their rotation with them)."""
        self.cache.copy(torch.from_numpy(source_slots).to(self.device), torch.from_numpy(target_slots).to(self.device))


def reference_attention(spec: ModelSpec, cache: KVCache, device: torch.device) -> PrepareAttention:
    """Attention session by session through scaled_dot_product_attention, on any device."""
    windows = [layer.sliding_window for layer in spec.layers]
    scale = spec.head_dim**-0.5

    def prepare(batch: PackedBatch) -> Attend:
        context = PagedContext(batch, cache, device)

        def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return context.attend(layer, query, key, value, scale, windows[layer]).flatten(1)

        return attend

    return prepare
