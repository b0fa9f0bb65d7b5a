"""The forward of a dense decoder in as few tensor operations as it takes; attention over the KV cache is passed in."""

from collections.abc import Callable

import torch
from torch.nn.functional import embedding, linear, rms_norm, silu

from specedge.model.lean.products import add_product, product
from specedge.model.lean.rotary import cos_sin, rotate
from specedge.model.lean.spec import ModelSpec
from specedge.model.lean.weights import LayerWeights, ModelWeights
from specedge.model.ranks import Ranks
from specedge.model.row_tile import is_rounded, pad_rows

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Rotated queries [num_rows, num_heads, head_dim], rotated keys and values [num_rows, num_kv_heads, head_dim]."""

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(layer index, queries, keys, values) -> [num_rows, num_heads * head_dim]; stores keys and values in their slots.

The heads are views whose rows lie further apart than their elements; only the last dimension is contiguous.
"""


class LeanModel:
    """A loaded model as functions of the residual stream.

    Args:
        spec, weights: of the same model, or of the same rank's part of one.
        ranks: those that hold the other parts; all of them run the same forwards. None: the model is whole.
    """

    def __init__(self, spec: ModelSpec, weights: ModelWeights, ranks: Ranks | None = None) -> None:
        self.spec = spec
        self._ranks = ranks
        self.dtype = weights.embed.dtype
        self.device = weights.embed.device
        self._weights = weights
        self._inv_freq = torch.from_numpy(spec.inv_freq).to(self.device)
        self._qk_norms = [self._qk_norm(layer) for layer in weights.layers]
        self._is_padded = is_rounded(self.dtype, self.device)
        self._has_head = ranks is None or ranks.leads
        self._head = weights.head
        if self.device.type == "cpu" and self._has_head:
            # Products of bfloat16 matrices are rounded to bfloat16 on the CPU, which would tie the best tokens.
            self._head = weights.head.float()

    def _qk_norm(self, layer: LayerWeights) -> torch.Tensor | None:
        """[num_heads + num_kv_heads, head_dim]: queries and keys are normalised in one operation."""
        if layer.q_norm is None or layer.k_norm is None:
            return None
        return torch.cat(
            (layer.q_norm.expand(self.spec.num_heads, -1), layer.k_norm.expand(self.spec.num_kv_heads, -1))
        )

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, attend: Attend, wanted: torch.Tensor
    ) -> torch.Tensor:
        """Logits float32 [num_wanted, vocab_size] of the wanted rows.

        Args:
            token_ids, positions: int64 [num_rows].
            wanted: int64 [num_wanted] row numbers.
        """
        num_wanted = wanted.shape[0]
        if self._is_padded:
            wanted = pad_rows(wanted)
        return self.logits(self.hidden(token_ids, positions, attend, wanted))[:num_wanted]

    def hidden(
        self, token_ids: torch.Tensor, positions: torch.Tensor, attend: Attend, wanted: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The residual stream [num_wanted, hidden_size] after the last layer; of all rows where `wanted` is None."""
        num_rows = token_ids.shape[0]
        if self._is_padded:
            token_ids, positions = pad_rows(token_ids), pad_rows(positions)
        residual, (cos, sin) = self.embed(token_ids), self.rotation(positions)
        last = len(self.spec.layers) - 1
        for layer in range(last + 1):
            query, key, value = self.before_attention(layer, residual, cos, sin)
            attended = attend(layer, query[:num_rows], key[:num_rows], value[:num_rows])
            if self._is_padded:
                attended = pad_rows(attended)
            if layer == last and wanted is not None:
                residual, attended = residual.index_select(0, wanted), attended.index_select(0, wanted)
            self.after_attention(layer, residual, attended)
        return residual if wanted is not None else residual[:num_rows]

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """The residual stream [num_rows, hidden_size] before the first layer."""
        return embedding(token_ids, self._weights.embed)

    def rotation(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The rotary tables of the rows, shared by all layers."""
        return cos_sin(positions, self._inv_freq, self.spec.rope_scale, self.dtype)

    def before_attention(self, layer: int, residual: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Heads:
        """Queries, keys and values of one layer.

        Args:
            residual: [num_rows, hidden_size].
            cos, sin: of `rotation`.
        """
        spec, weights, qk_norm = self.spec, self._weights.layers[layer], self._qk_norms[layer]
        normed = rms_norm(residual, (spec.hidden_size,), weights.input_norm, spec.rms_eps)
        projected = product(normed, weights.qkv, weights.qkv_bias)
        heads = projected.view(residual.shape[0], -1, spec.head_dim)
        num_rotated = spec.num_heads + spec.num_kv_heads
        queries_and_keys = heads[:, :num_rotated]
        if qk_norm is not None:
            queries_and_keys = rms_norm(queries_and_keys, (spec.head_dim,), None, spec.rms_eps).mul_(qk_norm)
        rotated = rotate(queries_and_keys, cos, sin)
        return rotated[:, : spec.num_heads], rotated[:, spec.num_heads :], heads[:, num_rotated:]

    def after_attention(self, layer: int, residual: torch.Tensor, attended: torch.Tensor) -> None:
        """Add one layer's attention and MLP to the residual stream, in place."""
        weights = self._weights.layers[layer]
        self._add_product(residual, attended, weights.o)
        normed = rms_norm(residual, (self.spec.hidden_size,), weights.post_norm, self.spec.rms_eps)
        gate, up = linear(normed, weights.gate_up).chunk(2, dim=1)
        self._add_product(residual, silu(gate).mul_(up), weights.down)

    def _add_product(self, residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
        if self._ranks is None:
            add_product(residual, x, weight)
        else:
            part = linear(x, weight)
            self._ranks.add(part)
            residual.add_(part)

    def logits(self, residual: torch.Tensor) -> torch.Tensor:
        """Logits float32 [num_rows, vocab_size] after the last layer; [num_rows, 0] on ranks without a head."""
        if not self._has_head:
            return residual.new_empty((residual.shape[0], 0), dtype=torch.float32)
        normed = rms_norm(residual, (self.spec.hidden_size,), self._weights.final_norm, self.spec.rms_eps)
        if self.device.type == "cuda" and self.dtype != torch.float32:
            return torch.mm(normed, self._head.t(), out_dtype=torch.float32)
        return linear(normed.to(self._head.dtype), self._head)
