"""What every attention backend promises: packed ragged rows over slots of a KV cache.

A forward is planned once (`plan_of`), placed on the device once (`prepare`) and attended to once per layer (`attend`).
A backend that can also be recorded reserves its state once and fills it anew for every plan.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from specedge.errors import SpecEdgeError
from specedge.model.attention.placement import Array, Placement, Table
from specedge.model.attention_plan import AttentionPlan


class AttentionUnavailable(SpecEdgeError):
    """A backend that was asked for by name cannot serve this model on this device."""


@dataclass(frozen=True, slots=True)
class Room:
    """How large a plan may be."""

    num_rows: int
    num_segments: int
    num_context: int
    num_tail: int
    num_words: int

    @classmethod
    def of(cls, plan: AttentionPlan) -> "Room":
        """Room for exactly this plan."""
        return cls(
            num_rows=plan.num_rows,
            num_segments=plan.num_segments,
            num_context=len(plan.context_slots),
            num_tail=len(plan.tail_positions),
            num_words=plan.mask_words.shape[1],
        )

    def holds(self, other: "Room") -> bool:
        """Whether every size of `other` fits."""
        return (
            other.num_rows <= self.num_rows
            and other.num_segments <= self.num_segments
            and other.num_context <= self.num_context
            and other.num_tail <= self.num_tail
            and other.num_words <= self.num_words
        )


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


class ReservedState(Protocol):
    """A state in fixed memory, which any plan that fits its room can be put into."""

    @property
    def room(self) -> Room:
        """What fits."""
        ...

    @property
    def tables(self) -> Placement:
        """Its arrays on the device."""
        ...


@runtime_checkable
class RecordableBackend(AttentionBackend, Protocol):
    """A backend whose work can be recorded (as a CUDA graph) and replayed for other plans.

    `attend` with a reserved state reads and writes fixed memory, launches the same programs for every plan in it, and
    asks the device for nothing.
    """

    def reserve(self, room: Room, device: torch.device, inputs: Sequence[Table] = ()) -> ReservedState:
        """A state for any plan that fits, and tables for other inputs of the forward, to be copied with the plan."""
        ...

    def narrowed(self, state: Any, num_rows: int) -> ReservedState:
        """The same memory, with no more programs than plans of so many rows may need."""
        ...

    def fill(self, state: Any, plan: AttentionPlan, inputs: Mapping[str, Array] | None = None) -> None:
        """Put a plan, which must fit, and the other inputs into a reserved state: one copy to the device."""
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
