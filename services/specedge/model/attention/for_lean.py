"""Attention behind the seam of the lean models: a backend, or the reference session by session."""

from collections.abc import Callable
from typing import Any

import torch

from specedge.model.attention.interface import AttentionBackend, store_kv
from specedge.model.attention_plan import plan_of
from specedge.model.batch import PackedBatch
from specedge.model.kv_cache import KVCache
from specedge.model.lean.blocks import Attend
from specedge.model.lean.spec import ModelSpec
from specedge.model.paged_attention import PagedContext

PrepareAttention = Callable[[PackedBatch, torch.Tensor], Attend]
"""(batch, its slots on the device) -> what all layers of one forward attend with."""


def reference_attention(spec: ModelSpec, cache: KVCache, device: torch.device) -> PrepareAttention:
    """Attention session by session through scaled_dot_product_attention, without a plan; best on the CPU."""
    windows = [layer.sliding_window for layer in spec.layers]
    scale = spec.head_dim**-0.5

    def prepare(batch: PackedBatch, slots: torch.Tensor) -> Attend:
        context = PagedContext(batch, cache, device)

        def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return context.attend(layer, query, key, value, scale, windows[layer]).flatten(1)

        return attend

    return prepare


def backend_attention(
    backend: AttentionBackend, spec: ModelSpec, cache: KVCache, device: torch.device
) -> PrepareAttention:
    """A backend for a model and its cache."""

    def prepare(batch: PackedBatch, slots: torch.Tensor) -> Attend:
        return attention_over(backend, backend.prepare(plan_of(batch), device), slots, spec, cache)

    return prepare


def attention_over(
    backend: AttentionBackend, state: Any, slots: torch.Tensor, spec: ModelSpec, cache: KVCache
) -> Attend:
    """Attention of all layers to the plan that a backend's state holds.

    Args:
        slots: int64 [num_rows] where the rows' keys and values go.
    """
    scale = spec.head_dim**-0.5

    def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        keys, values = cache.layer(layer)
        store_kv(keys, values, slots, key, value)
        window = spec.layers[layer].sliding_window
        return backend.attend(state, keys, values, query, scale=scale, sliding_window=window).flatten(1)

    return attend
