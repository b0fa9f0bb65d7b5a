"""Attention backends behind the seam of the lean models."""

import torch

from specedge.model.attention.choose import BackendName, choose_backend
from specedge.model.attention.interface import store_kv
from specedge.model.attention_plan import plan_of
from specedge.model.batch import PackedBatch
from specedge.model.kv_cache import KVCache
from specedge.model.lean.blocks import Attend
from specedge.model.lean.runner import PrepareAttention
from specedge.model.lean.spec import ModelSpec


def backend_attention(
    spec: ModelSpec, cache: KVCache, device: torch.device, wanted: BackendName = "auto"
) -> PrepareAttention:
    """The best backend for a model and its cache, as `LeanRunner` takes it.

    Raises:
        AttentionUnavailable: a backend asked for by name cannot serve here.
    """
    dtype = cache.layer(0)[0].dtype
    backend = choose_backend(
        device, dtype, spec.head_dim, wanted, num_heads=spec.num_heads, num_kv_heads=spec.num_kv_heads
    )
    windows = [layer.sliding_window for layer in spec.layers]
    scale = spec.head_dim**-0.5

    def prepare(batch: PackedBatch) -> Attend:
        state = backend.prepare(plan_of(batch), device)
        slots = torch.from_numpy(batch.slots).to(device, non_blocking=True)

        def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            keys, values = cache.layer(layer)
            store_kv(keys, values, slots, key, value)
            attended = backend.attend(state, keys, values, query, scale=scale, sliding_window=windows[layer])
            return attended.flatten(1)

        return attend

    return prepare
