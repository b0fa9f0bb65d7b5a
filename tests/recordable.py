"""A recordable attention backend for the CPU: the reference, over a state that is filled again and again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from specedge.model.attention.interface import Room
from specedge.model.attention.placement import Array, Placement, Table
from specedge.model.attention.sdpa import SdpaBackend
from specedge.model.attention_plan import AttentionPlan


@dataclass(slots=True)
class HeldPlan:
    """What was filled in last; shared by the states that were narrowed from one."""

    segments: Any = None
    num_rows: int = 0


@dataclass(frozen=True, slots=True)
class State:
    room: Room
    tables: Placement
    held: HeldPlan
    num_rows: int


class RecordableSdpa(SdpaBackend):
    """Rows beyond the plan's are NaN, as memory that nobody wrote may be."""

    name = "recordable"

    def reserve(self, room: Room, device: torch.device, inputs: Sequence[Table] = ()) -> State:
        return State(room, Placement(list(inputs), device), HeldPlan(), room.num_rows)

    def narrowed(self, state: State, num_rows: int) -> State:
        return State(state.room, state.tables, state.held, num_rows)

    def fill(self, state: State, plan: AttentionPlan, inputs: Mapping[str, Array] | None = None) -> None:
        assert state.room.holds(Room.of(plan))
        state.held.segments, state.held.num_rows = super().prepare(plan, torch.device("cpu")), plan.num_rows
        state.tables.fill(inputs or {})

    def attend(self, state: Any, keys: torch.Tensor, values: torch.Tensor, q: torch.Tensor, **how: Any) -> torch.Tensor:
        if not isinstance(state, State):
            return super().attend(state, keys, values, q, **how)
        assert len(q) == state.num_rows
        output = torch.full(q.shape, float("nan"), dtype=q.dtype)
        num_rows = state.held.num_rows
        output[:num_rows] = super().attend(state.held.segments, keys, values, q[:num_rows], **how)
        return output
