"""A lean decoder forward with random weights, free of host work, that one CUDA graph can hold.

It stands for what a tuned engine runs, where `ModelRunner` asks the host for every session's attention: one product
for queries, keys and values, one for gate and up, norms, rotation and gating fused, and flash attention over contiguous
keys that reads each session's prefix once for all rows and heads of a group. Tree rows attend to the prefix without a
mask and to their own window under the ancestor mask; the two parts are merged by their log-sum-exp. Biases of the
projections, which cost no time that can be measured, are left out.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from specedge_bench.model_shape import ModelShape

logger = logging.getLogger(__name__)

EPSILON = 1e-6
ROPE_THETA = 1e6
WEIGHT_STD = 0.02
Fuse = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One block; matrices are [outputs, inputs]."""

    qkv: torch.Tensor
    output: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    attention_norm: torch.Tensor
    mlp_norm: torch.Tensor
    query_norm: torch.Tensor  # [head_dim]
    key_norm: torch.Tensor  # [head_dim]


@dataclass(frozen=True, slots=True)
class StaticBatch:
    """The tensors of one step, at fixed addresses so that a graph can be replayed."""

    num_sessions: int
    num_nodes: int  # rows of each session
    prefix: int
    token_ids: torch.Tensor  # [num_sessions * num_nodes]
    cosine: torch.Tensor  # [num_sessions * num_nodes, 1, head_dim]
    sine: torch.Tensor
    is_visible: torch.Tensor  # bool [num_nodes, num_nodes], ancestors and itself
    kv: torch.Tensor  # [num_kv_layers, 2, num_sessions, prefix + num_nodes, num_kv_heads, head_dim]

    @classmethod
    def build(
        cls, shape: ModelShape, num_sessions: int, depths: list[int], is_visible: torch.Tensor, kv: torch.Tensor
    ) -> "StaticBatch":
        """All sessions carry the same tree.

        Args:
            depths: of each node, the root's is 0.
            kv: as in the class; random values do. It may hold fewer layers than the model, which then share them.
        """
        device, dtype = kv.device, kv.dtype
        prefix = kv.shape[3] - len(depths)
        frequencies = ROPE_THETA ** (-torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim)
        positions = (prefix + torch.tensor(depths, dtype=torch.float32)).repeat(num_sessions)
        angles = torch.outer(positions, frequencies).repeat(1, 2)[:, None]
        token_ids = torch.randint(shape.vocab_size, (num_sessions * len(depths),), device=device)
        return cls(
            num_sessions=num_sessions,
            num_nodes=len(depths),
            prefix=prefix,
            token_ids=token_ids,
            cosine=angles.cos().to(device, dtype),
            sine=angles.sin().to(device, dtype),
            is_visible=is_visible.to(device),
            kv=kv,
        )


class LeanDecoder:
    """The forward over given weights.

    Args:
        fuse: turns a function of element-wise operations into one kernel; None leaves it as it is.
    """

    def __init__(
        self,
        shape: ModelShape,
        embedding: torch.Tensor,  # [vocab_size, hidden_size]
        layers: list[LayerWeights],
        final_norm: torch.Tensor,
        head: torch.Tensor,  # [vocab_size, hidden_size]
        fuse: Fuse | None = None,
    ) -> None:
        self._shape, self._embedding, self._layers = shape, embedding, layers
        self._final_norm, self._head = final_norm, head
        wrap: Fuse = fuse or (lambda function: function)
        self._add_norm, self._rotate, self._gate = wrap(_add_norm), wrap(_norm_and_rotate), wrap(_gate)

    @classmethod
    def random(
        cls, shape: ModelShape, device: torch.device, dtype: torch.dtype, fuse: Fuse | None = None
    ) -> "LeanDecoder":
        """Random weights, made on the device."""

        def matrix(num_outputs: int, num_inputs: int) -> torch.Tensor:
            return torch.empty((num_outputs, num_inputs), device=device, dtype=dtype).normal_(std=WEIGHT_STD)

        def ones(size: int) -> torch.Tensor:
            return torch.ones(size, device=device, dtype=dtype)

        hidden, inner, head_dim = shape.hidden_size, shape.intermediate_size, shape.head_dim
        query = shape.num_heads * head_dim
        layers = [
            LayerWeights(
                qkv=matrix(query + 2 * shape.num_kv_heads * head_dim, hidden),
                output=matrix(hidden, query),
                gate_up=matrix(2 * inner, hidden),
                down=matrix(hidden, inner),
                attention_norm=ones(hidden),
                mlp_norm=ones(hidden),
                query_norm=ones(head_dim),
                key_norm=ones(head_dim),
            )
            for _ in range(shape.num_layers)
        ]
        embedding = matrix(shape.vocab_size, hidden)
        head = embedding if shape.is_tied else matrix(shape.vocab_size, hidden)
        return cls(shape, embedding, layers, ones(hidden), head, fuse)

    @torch.inference_mode()
    def forward(self, batch: StaticBatch) -> torch.Tensor:
        """Logits of all rows, [num_sessions * num_nodes, vocab_size]; their keys and values go behind the prefix."""
        residual = functional.embedding(batch.token_ids, self._embedding)
        branch: torch.Tensor | None = None
        for index, layer in enumerate(self._layers):
            normed, residual = self._add_norm(residual, branch, layer.attention_norm)
            attended = self._attend(normed, layer, batch, batch.kv[index % batch.kv.shape[0]])
            normed, residual = self._add_norm(residual, functional.linear(attended, layer.output), layer.mlp_norm)
            branch = functional.linear(self._gate(functional.linear(normed, layer.gate_up)), layer.down)
        normed, _ = self._add_norm(residual, branch, self._final_norm)
        return functional.linear(normed, self._head)

    def _attend(self, normed: torch.Tensor, layer: LayerWeights, batch: StaticBatch, kv: torch.Tensor) -> torch.Tensor:
        shape, num_sessions, num_nodes = self._shape, batch.num_sessions, batch.num_nodes
        heads = shape.num_heads, shape.num_kv_heads, shape.num_kv_heads
        qkv = functional.linear(normed, layer.qkv).view(-1, sum(heads), shape.head_dim)
        query, key, value = torch.split_with_sizes(qkv, heads, dim=1)
        has_norm = shape.has_qk_norm
        query = self._rotate(query, layer.query_norm if has_norm else None, batch.cosine, batch.sine)
        key = self._rotate(key, layer.key_norm if has_norm else None, batch.cosine, batch.sine)
        window = num_sessions, num_nodes, shape.num_kv_heads, shape.head_dim
        kv[0, :, batch.prefix :] = key.reshape(window)
        kv[1, :, batch.prefix :] = value.reshape(window)
        # The query heads of a group become rows of their one key head: the prefix is read once for all of them.
        group = shape.num_heads // shape.num_kv_heads
        packed = query.reshape(num_sessions, num_nodes, shape.num_kv_heads, group, shape.head_dim)
        packed = packed.permute(0, 2, 1, 3, 4).reshape(num_sessions, shape.num_kv_heads, -1, shape.head_dim)
        keys, values = kv[0].transpose(1, 2), kv[1].transpose(1, 2)
        if num_nodes == 1:
            output, _ = attention_with_lse(packed, keys, values)
        else:
            seen = batch.is_visible[:, None].expand(-1, group, -1).reshape(-1, num_nodes)
            parts = [
                attention_with_lse(packed, keys[:, :, : batch.prefix], values[:, :, : batch.prefix]),
                masked_attention(packed, keys[:, :, batch.prefix :], values[:, :, batch.prefix :], seen),
            ]
            output = merge(*parts)
        output = output.reshape(num_sessions, shape.num_kv_heads, num_nodes, group, shape.head_dim)
        output = output.permute(0, 2, 1, 3, 4)
        return output.reshape(num_sessions * num_nodes, -1)


def attention_with_lse(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention without a mask, [sessions, heads, rows, head_dim], and its log-sum-exp [sessions, heads, rows]."""
    if query.is_cuda and query.dtype != torch.float32:
        output, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(query, keys, values)
        return output, lse
    return masked_attention(query, keys, values, None)


def masked_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, is_visible: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same under a mask [rows, keys], written out; meant for few keys."""
    scores = (query @ keys.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    if is_visible is not None:
        scores = scores.masked_fill(~is_visible, float("-inf"))
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp().to(values.dtype) @ values, lse


def merge(left: tuple[torch.Tensor, torch.Tensor], right: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Attention over two disjoint sets of keys from the attention over each."""
    share = torch.sigmoid(left[1] - right[1])[..., None].to(left[0].dtype)
    return torch.lerp(right[0], left[0], share)


def _add_norm(
    residual: torch.Tensor, branch: torch.Tensor | None, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if branch is not None:
        residual = residual + branch
    return _norm(residual, weight), residual


def _norm(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = rows.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)).to(rows.dtype) * weight


def _norm_and_rotate(
    heads: torch.Tensor, weight: torch.Tensor | None, cosine: torch.Tensor, sine: torch.Tensor
) -> torch.Tensor:
    if weight is not None:
        heads = _norm(heads, weight)
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine + torch.cat((-second, first), dim=-1) * sine


def _gate(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def find_fuse(device: torch.device) -> Fuse | None:
    """torch.compile, after trying it; None on the CPU and where the compiler does not work."""
    if device.type != "cuda":
        return None

    def fuse(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, dynamic=True)

    sample = torch.ones((4, 64), device=device, dtype=torch.bfloat16)
    try:
        fuse(_gate)(sample)
    except Exception as error:  # Triton or the C compiler it needs may be missing or broken in any way
        logger.warning("element-wise kernels are not fused: %s", str(error).splitlines()[0])
        return None
    return fuse
