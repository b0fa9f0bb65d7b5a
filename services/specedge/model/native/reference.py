"""The decoder's arithmetic in a page of torch: one text, no cache. What the native engine is held against."""

from collections.abc import Sequence

import torch
from torch.nn.functional import linear, silu, softmax

from specedge.model.lean.spec import ModelSpec
from specedge.model.lean.weights import LayerWeights, ModelWeights


def reference_logits(
    spec: ModelSpec, weights: ModelWeights, token_ids: Sequence[int], kv_dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Logits after every token of one text, float32 [num_tokens, vocab_size].

    Args:
        kv_dtype: what keys and values are rounded to.
    """
    positions = torch.arange(len(token_ids))
    angles = positions[:, None].float() * torch.from_numpy(spec.inv_freq)
    cosines, sines = angles.cos() * spec.rope_scale, angles.sin() * spec.rope_scale
    distance = positions[:, None] - positions[None, :]
    x = weights.embed.float()[torch.tensor(token_ids)]
    for layer, own in zip(spec.layers, weights.layers, strict=True):
        is_seen = distance >= 0
        if layer.sliding_window is not None:
            is_seen &= distance < layer.sliding_window
        x = x + _attend(spec, own, _norm(x, own.input_norm, spec.rms_eps), cosines, sines, is_seen, kv_dtype)
        gate, up = linear(_norm(x, own.post_norm, spec.rms_eps), own.gate_up.float()).chunk(2, dim=-1)
        x = x + linear(silu(gate) * up, own.down.float())
    return linear(_norm(x, weights.final_norm, spec.rms_eps), weights.head.float())


def _attend(
    spec: ModelSpec,
    own: LayerWeights,
    x: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    is_seen: torch.Tensor,
    kv_dtype: torch.dtype,
) -> torch.Tensor:
    bias = None if own.qkv_bias is None else own.qkv_bias.float()
    heads = linear(x, own.qkv.float(), bias).view(len(x), -1, spec.head_dim).transpose(0, 1)
    # Each [heads, num_tokens, head_dim].
    q, k, v = torch.split(heads, [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads])
    if own.q_norm is not None and own.k_norm is not None:
        q, k = _norm(q, own.q_norm, spec.rms_eps), _norm(k, own.k_norm, spec.rms_eps)
    q, k = _rotate(q, cosines, sines), _rotate(k, cosines, sines)
    k, v = k.to(kv_dtype).float(), v.to(kv_dtype).float()
    group = spec.num_heads // spec.num_kv_heads
    scores = q @ k.repeat_interleave(group, dim=0).transpose(1, 2) * spec.head_dim**-0.5
    shares = softmax(scores.masked_fill(~is_seen, -torch.inf), dim=-1)
    out = shares @ v.repeat_interleave(group, dim=0)
    return linear(out.transpose(0, 1).flatten(1), own.o.float())


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight.float()


def _rotate(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cosines - high * sines, high * cosines + low * sines), dim=-1)
