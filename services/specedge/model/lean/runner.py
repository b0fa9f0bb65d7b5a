"""Runs a lean model over paged KV, with the interface of `specedge.model.runner.ModelRunner`."""

from collections.abc import Sequence

import numpy as np
import torch

from specedge.model.attention.for_lean import backend_attention, reference_attention
from specedge.model.attention.interface import AttentionBackend, RecordableBackend
from specedge.model.attention.placement import place
from specedge.model.batch import IntArray, PackedBatch
from specedge.model.kv_cache import KVCache
from specedge.model.lean.blocks import LeanModel
from specedge.model.lean.row_bucket import RowBuckets
from specedge.model.lean.spec import ModelSpec
from specedge.model.lean.weights import ModelWeights
from specedge.model.ranks import Ranks


class LeanRunner:
    """A lean model with its KV cache.

    Args:
        spec, weights: of the same model (per tensor-parallel rank); the weights decide device and dtype.
        num_slots: size of the KV cache, in tokens.
        backend: computes attention; None: the reference, session by session.
        row_buckets: row counts whose forward is recorded now and replayed later; needs a backend that can be recorded.
        max_graph_bytes: device memory the recorded forwards may take; None: no bound.
        ranks: those that hold the other parts of the model; only rank 0 has logits.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: ModelWeights,
        num_slots: int,
        *,
        backend: AttentionBackend | None = None,
        row_buckets: Sequence[int] = (),
        max_graph_bytes: int | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.model = LeanModel(spec, weights, ranks)
        self.device: torch.device = self.model.device
        self.vocab_size: int = spec.vocab_size
        self.num_slots = num_slots
        row_counts = [num_rows for num_rows in row_buckets if num_rows <= num_slots]
        self.cache = KVCache(
            num_layers=len(spec.layers),
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            num_slots=num_slots + bool(row_counts),  # recorded forwards write the padding's keys and values to the last
            dtype=self.model.dtype,
            device=self.device,
        )
        if backend is None:
            self._prepare = reference_attention(spec, self.cache, self.device)
        else:
            self._prepare = backend_attention(backend, spec, self.cache, self.device)
        self._buckets: RowBuckets | None = None
        if row_counts:
            assert isinstance(backend, RecordableBackend), f"{backend} cannot be recorded"
            self._buckets = RowBuckets(self.model, self.cache, backend, row_counts, max_graph_bytes)

    @property
    def row_buckets(self) -> tuple[int, ...]:
        """Row counts whose forward is recorded, ascending."""
        return () if self._buckets is None else self._buckets.row_counts

    @torch.inference_mode()
    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Compute keys and values of all rows and the logits of the wanted ones.

        Returns:
            float32 [num_wanted, vocab_size] on the model's device.
        """
        residual = None if self._buckets is None else self._buckets.run(batch)
        if residual is not None:
            return self.model.logits(residual)
        inputs = place(
            {
                "token_ids": batch.token_ids,
                "positions": batch.positions,
                "slots": batch.slots,
                "wanted": batch.logits_rows,
            },
            self.device,
        )
        attend = self._prepare(batch, inputs["slots"])
        return self.model.forward(inputs["token_ids"], inputs["positions"], attend, inputs["wanted"])

    @torch.inference_mode()
    def copy_kv(self, source_slots: IntArray, target_slots: IntArray) -> None:
        """Move accepted tokens' keys and values to their final slots (keys carry their rotation with them)."""
        source, target = torch.from_numpy(np.stack((source_slots, target_slots))).to(self.device)
        self.cache.copy(source, target)
