"""The tensors behind the KV slots; who owns which slot is the block pool's business."""

from typing import Any

import torch


class KVCache:
    """Keys and values of every layer, addressed by slot.

    Args:
        num_layers, num_kv_heads, head_dim: as in the model's configuration (per tensor-parallel rank).
        num_slots: how many tokens fit.
        dtype, device: of the model.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        num_slots: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_slots = num_slots
        self._tensor = torch.zeros((num_layers, 2, num_slots, num_kv_heads, head_dim), dtype=dtype, device=device)
        self._layers = [(self._tensor[layer, 0], self._tensor[layer, 1]) for layer in range(num_layers)]

    def layer(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer, each [num_slots, num_kv_heads, head_dim]."""
        return self._layers[layer_idx]

    def copy(self, source_slots: torch.Tensor, target_slots: torch.Tensor) -> None:
        """Copy tokens between slots in all layers; sources are read before any target is written."""
        self._tensor[:, :, target_slots] = self._tensor[:, :, source_slots]

    @property
    def num_bytes(self) -> int:
        return self._tensor.numel() * self._tensor.element_size()

    @staticmethod
    def bytes_per_slot(num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """What one token's keys and values take, in bytes."""
        return num_layers * 2 * num_kv_heads * head_dim * dtype.itemsize


def kv_shape(config: Any) -> dict[str, int]:
    """Layers, KV heads (of this rank, if the model is divided) and head size, as KVCache takes them."""
    text = config.get_text_config()
    num_heads = int(text.num_attention_heads)
    divided = getattr(config, "distributed_config", None)
    num_ranks = 1 if divided is None else int(divided.tp_size)
    return {
        "num_layers": int(text.num_hidden_layers),
        "num_kv_heads": int(getattr(text, "num_key_value_heads", None) or num_heads) // num_ranks,
        "head_dim": int(getattr(text, "head_dim", None) or text.hidden_size // num_heads),
    }
