"""The reference backend against attention written out token by token, and against the registered function."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from specedge.model.attention.interface import store_kv
from specedge.model.attention.sdpa import SdpaBackend
from specedge.model.attention.self_test import Chain, Tree, random_batch, random_inputs
from specedge.model.attention_plan import plan_of
from specedge.model.batch import PackedBatch
from specedge.model.kv_cache import KVCache
from specedge.model.paged_attention import PagedContext
from specedge.model.transformers_attention import paged_attention

CPU = torch.device("cpu")
CASES = (Chain(0, 1), Tree(5, 12), Chain(20, 9), Tree(13, 65, 4), Chain(31, 1))
SHAPE: dict[str, Any] = {"num_slots": 256, "num_heads": 6, "num_kv_heads": 2, "head_dim": 16, "dtype": torch.float32}


def written_out(
    batch: PackedBatch, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None
) -> torch.Tensor:
    out = torch.empty_like(q)
    group = q.shape[1] // keys.shape[1]
    start = 0
    for segment in batch.segments:
        num_tail = segment.num_rows if segment.mask is None else segment.mask.shape[1]
        prefix = len(segment.context_slots) - num_tail
        for local in range(segment.num_rows):
            row = start + local
            seen = []
            for index, slot in enumerate(segment.context_slots.tolist()):
                token = index - prefix
                if token < 0:
                    position, sees = index, True
                elif segment.mask is None:
                    position, sees = index, token <= local
                else:
                    tail = segment.tail_positions
                    position = int(batch.positions[start + token] if tail is None else tail[token])
                    sees = bool(segment.mask[local, token])
                if sees and (window is None or batch.positions[row] - position < window):
                    seen.append(slot)
            for head in range(q.shape[1]):
                scores = keys[seen, head // group] @ q[row, head] * 0.3
                out[row, head] = scores.softmax(0) @ values[seen, head // group]
        start += segment.num_rows
    return out


@pytest.mark.parametrize("window", [None, 1, 7, 1000])
def test_against_attention_written_out(window: int | None) -> None:
    batch = random_batch(np.random.default_rng(3), CASES, num_slots=256)
    q, keys, values = random_inputs(3, num_rows=len(batch.slots), device=CPU, **SHAPE)
    backend = SdpaBackend()
    state = backend.prepare(plan_of(batch), CPU)
    result = backend.attend(state, keys, values, q, scale=0.3, sliding_window=window)
    torch.testing.assert_close(result, written_out(batch, q, keys, values, window), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 9])
def test_equals_the_registered_function(window: int | None) -> None:
    batch = random_batch(np.random.default_rng(4), CASES, num_slots=256)
    num_rows = len(batch.slots)
    q, keys, values = random_inputs(4, num_rows=num_rows, device=CPU, **SHAPE)
    k, v = keys[:num_rows] + 1, values[:num_rows] + 1
    cache = KVCache(num_layers=1, num_kv_heads=2, head_dim=16, num_slots=256, dtype=torch.float32, device=CPU)
    cache.layer(0)[0].copy_(keys)
    cache.layer(0)[1].copy_(values)
    expected, _ = paged_attention(
        cast(torch.nn.Module, SimpleNamespace(layer_idx=0)),
        q.transpose(0, 1)[None],
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        None,
        scaling=0.3,
        sliding_window=window,
        paged=PagedContext(batch, cache, CPU),
    )
    store_kv(keys, values, torch.from_numpy(batch.slots), k, v)
    backend = SdpaBackend()
    state = backend.prepare(plan_of(batch), CPU)
    result = backend.attend(state, keys, values, q, scale=0.3, sliding_window=window)
    assert torch.equal(keys, cache.layer(0)[0])
    assert torch.equal(values, cache.layer(0)[1])
    assert torch.equal(result, expected[0])


def test_queries_may_be_a_slice_of_fused_projections() -> None:
    batch = random_batch(np.random.default_rng(5), CASES, num_slots=256)
    q, keys, values = random_inputs(5, num_rows=len(batch.slots), device=CPU, **SHAPE)
    fused = torch.cat([q.flatten(1), torch.full((len(q), 8), 9.0)], dim=1)
    backend = SdpaBackend()
    state = backend.prepare(plan_of(batch), CPU)
    strided = fused[:, :-8].unflatten(1, (6, 16))
    result = backend.attend(state, keys, values, strided, scale=0.3, sliding_window=None)
    assert result.is_contiguous()
    assert torch.equal(result, backend.attend(state, keys, values, q, scale=0.3, sliding_window=None))
