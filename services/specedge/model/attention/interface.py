"""What every attention backend promises: packed ragged rows over slots of a KV cache.

A forward is planned once (`plan_of`), placed on the device once (`prepare`) and attended to once per layer (`attend`).
"""

from typing import Any, Protocol

import torch

from specedge.errors import SpecEdgeError
from specedge.model.attention_plan import AttentionPlan


class AttentionUnavailable(SpecEdgeError):
    """A backend that was asked for by name cannot serve this model on this device."""


class AttentionBackend(Protocol):
    """Attends to a plan's contexts; the keys and values of the rows themselves are already in their slots."""

    @property
    def name(self) -> str:
        """As settings, logs and metrics call it."""
        ...

    def prepare(self, plan: AttentionPlan, device: torch.device) -> Any:
        """Place a plan on the device, in one copy; the result serves all layers of one forward."""
        ...

    def attend(
        self,
        state: Any,
        layer_keys: torch.Tensor,  # [num_slots, num_kv_heads, head_dim]
        layer_values: torch.Tensor,  # [num_slots, num_kv_heads, head_dim]
        q: torch.Tensor,  # [num_rows, num_heads, head_dim]; rows may be strided
        *,
        scale: float,
        sliding_window: int | None,
    ) -> torch.Tensor:
        """Attention of every row.

        Args:
            state: what `prepare` returned.
            scale: what scores are multiplied by, above 0.
            sliding_window: a row at position p sees keys at positions above p - sliding_window; None: all.

        Returns:
            [num_rows, num_heads, head_dim], contiguous, in q's dtype. Rows beyond the plan's have no defined value.
        """
        ...


def store_kv(
    layer_keys: torch.Tensor,  # [num_slots, num_kv_heads, head_dim]
    layer_values: torch.Tensor,  # [num_slots, num_kv_heads, head_dim]
    slots: torch.Tensor,  # int64 [num_rows]
    keys: torch.Tensor,  # [num_rows, num_kv_heads, head_dim]
    values: torch.Tensor,  # [num_rows, num_kv_heads, head_dim]
) -> None:
    """Write the rows' keys and values to their slots."""
    layer_keys.index_copy_(0, slots, keys)
    layer_values.index_copy_(0, slots, values)
