"""Tree attention for CUDA: trees, chains and prefill chunks in one launch of a Triton kernel.

The kernel's rules (see `triton_kernel`) make a row's result independent of the batch. In a captured graph, the state
comes from `reserve` and is filled anew before each replay; launches are then sized for all the state has room for.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from specedge.model.attention.division import ITEM_FIELDS, MERGE_FIELDS, Division, divide, max_items, max_tiles
from specedge.model.attention.interface import AttentionUnavailable, Room
from specedge.model.attention.placement import Array, Placement, Table
from specedge.model.attention.triton_kernel import attend_kernel, merge_kernel
from specedge.model.attention_plan import AttentionPlan

SPLIT_SIZE = 512  # tokens; part of the results' rounding, so the same for all devices, batches and models
MERGE_ROWS = 8
MIN_HEAD_DIM, MAX_HEAD_DIM = 16, 256
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_NUM_PARTIAL_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program holds: `rows` packed rows against blocks of `keys` keys, values in `num_parts` side by side."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int
    num_parts: int = 1


def tile_for(head_dim: int, dtype: torch.dtype, capability: int) -> Tile:
    """The same for every batch, since the order of sums depends on it.

    Two accumulators of [rows, head_dim] in float32 stay in registers. Three stages: slots are loaded a block ahead of
    the keys and values found by them, and those a block ahead of their use.

    Args:
        capability: major number of the GPU's compute capability.
    """
    if dtype is torch.float32:  # for tests only
        return Tile(rows=32, keys=16, num_warps=4, num_stages=1)
    if head_dim > 128:
        return Tile(rows=64, keys=32, num_warps=8, num_stages=3)
    # With mma.sync, Triton gives each warp whole rows only where values are no wider than the tile is high. Otherwise
    # all warps share all rows, and the weights of every block go through shared memory (a third more instructions).
    has_wider_mma = capability in (9, 10)
    num_parts = 1 if has_wider_mma or head_dim <= 64 else 2
    return Tile(rows=64, keys=64, num_warps=4, num_stages=3, num_parts=num_parts)


@dataclass(frozen=True, slots=True)
class TritonState:
    """A plan on the device, and how many programs and merges are launched for it."""

    room: Room
    num_items: int
    num_merges: int
    tables: Placement


class TritonBackend:
    """Implements `RecordableBackend`, for one model.

    Args:
        device: where it runs; the CPU only with Triton's interpreter.
        dtype: of queries, keys and values.
        num_heads, num_kv_heads, head_dim: of the model (per tensor-parallel rank).
        num_processors: how many programs run at once; by default the device's multiprocessors.

    Raises:
        AttentionUnavailable: the kernel does not take such heads or this dtype.
    """

    name = "triton"

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        num_processors: int | None = None,
    ) -> None:
        if not MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM:
            raise AttentionUnavailable(
                f"attention backend 'triton' takes head dimensions from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}, "
                f"not {head_dim}"
            )
        if dtype not in DTYPES:
            names = ", ".join(str(known).removeprefix("torch.") for known in DTYPES)
            raise AttentionUnavailable(f"attention backend 'triton' takes {names}, not {dtype}")
        capability = 0
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            capability = properties.major
            num_processors = num_processors or properties.multi_processor_count
        self._tile = tile_for(head_dim, dtype, capability)
        self._group = num_heads // num_kv_heads
        self._num_kv_heads = num_kv_heads
        self._head_dim = head_dim
        self._max_share = max(1, (num_processors or 1) // num_kv_heads)
        self._max_partial_rows = _NUM_PARTIAL_BYTES // (num_kv_heads * (head_dim + 2) * 4)
        partials = (self._max_partial_rows, num_kv_heads)
        self._partial_accs = torch.empty((*partials, head_dim), dtype=torch.float32, device=device)
        self._partial_sums = torch.empty((*partials, 2), dtype=torch.float32, device=device)

    def prepare(self, plan: AttentionPlan, device: torch.device) -> TritonState:
        """A state for this plan alone, launched with no program too many."""
        division = self._divide(plan)
        state = self._state(Room.of(plan), len(division.items), len(division.merges), device, ())
        self._fill(state, plan, division, {})
        return state

    def reserve(self, room: Room, device: torch.device, inputs: Sequence[Table] = ()) -> TritonState:
        """A state for any plan that fits, to be filled before each replay of a graph that was captured with it."""
        return self._state(room, *self._most_work(room.num_rows, room.num_segments), device, inputs)

    def narrowed(self, state: TritonState, num_rows: int) -> TritonState:
        """The same memory, with no more programs than plans of so many rows may need."""
        num_items, num_merges = self._most_work(num_rows, min(num_rows, state.room.num_segments))
        return replace(state, num_items=num_items, num_merges=num_merges)

    def fill(self, state: TritonState, plan: AttentionPlan, inputs: Mapping[str, Array] | None = None) -> None:
        """Put a plan into a reserved state, whose room must hold it."""
        assert state.room.holds(Room.of(plan)), (state.room, Room.of(plan))
        self._fill(state, plan, self._divide(plan), inputs or {})

    def attend(
        self,
        state: TritonState,
        layer_keys: torch.Tensor,
        layer_values: torch.Tensor,
        q: torch.Tensor,
        *,
        scale: float,
        sliding_window: int | None,
    ) -> torch.Tensor:
        head_dim, tile, tables = self._head_dim, self._tile, state.tables
        if q.stride(2) != 1 or q.stride(1) != head_dim:
            q = q.contiguous()
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        block_d = 1 << (head_dim - 1).bit_length()
        with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
            attend_kernel[(state.num_items, self._num_kv_heads)](
                out,
                q,
                layer_keys,
                layer_values,
                tables["items"],
                tables["row_starts"],
                tables["context_starts"],
                tables["context_slots"],
                tables["num_tails"],
                tables["is_chain"],
                tables["mask_words"],
                tables["positions"],
                tables["tail_starts"],
                tables["tail_positions"],
                self._partial_accs,
                self._partial_sums,
                scale * math.log2(math.e),
                state.room.num_words,
                sliding_window or 0,
                q.stride(0),
                out.stride(0),
                layer_keys.stride(0),
                G=self._group,
                HEAD_DIM=head_dim,
                BLOCK_D=block_d,
                BLOCK_M=tile.rows,
                BLOCK_N=tile.keys,
                SPLIT=SPLIT_SIZE,
                NUM_PARTS=tile.num_parts,
                HAS_WINDOW=sliding_window is not None,
                PRECISION="ieee",
                num_warps=tile.num_warps,
                num_stages=tile.num_stages,
            )
            if state.num_merges:
                merge_kernel[(state.num_merges * (tile.rows // MERGE_ROWS), self._num_kv_heads)](
                    out,
                    tables["merges"],
                    tables["row_starts"],
                    self._partial_accs,
                    self._partial_sums,
                    scale * math.log2(math.e),
                    out.stride(0),
                    G=self._group,
                    HEAD_DIM=head_dim,
                    BLOCK_D=block_d,
                    BLOCK_M=tile.rows,
                    MERGE_ROWS=MERGE_ROWS,
                    num_warps=4,
                )
        return out

    def _divide(self, plan: AttentionPlan) -> Division:
        return divide(
            plan,
            group=self._group,
            tile_rows=self._tile.rows,
            split_size=SPLIT_SIZE,
            max_share=self._max_share,
            max_partial_rows=self._max_partial_rows,
        )

    def _most_work(self, num_rows: int, num_segments: int) -> tuple[int, int]:
        """The most items and merges of any plan of so many rows and segments."""
        num_tiles = max_tiles(num_rows, num_segments, group=self._group, tile_rows=self._tile.rows)
        return max_items(num_tiles, self._max_share), num_tiles

    def _state(
        self, room: Room, num_items: int, num_merges: int, device: torch.device, inputs: Sequence[Table]
    ) -> TritonState:
        tables = [
            *inputs,
            Table("items", (num_items, ITEM_FIELDS)),
            Table("merges", (num_merges, MERGE_FIELDS)),
            Table("row_starts", (room.num_segments + 1,)),
            Table("context_starts", (room.num_segments + 1,)),
            Table("num_tails", (room.num_segments,)),
            Table("is_chain", (room.num_segments,)),
            Table("tail_starts", (room.num_segments + 1,)),
            Table("mask_words", (room.num_rows, room.num_words), is_wide=True),
            Table("positions", (room.num_rows,)),
            Table("tail_positions", (room.num_tail,)),
            Table("context_slots", (room.num_context,)),
        ]
        return TritonState(room, num_items, num_merges, Placement(tables, device))

    def _fill(self, state: TritonState, plan: AttentionPlan, division: Division, inputs: Mapping[str, Array]) -> None:
        # Programs without an item, and merges without a tile, end at once.
        items = np.zeros((state.num_items, ITEM_FIELDS), dtype=np.int32)
        items[: len(division.items)] = division.items
        merges = np.zeros((state.num_merges, MERGE_FIELDS), dtype=np.int32)
        merges[: len(division.merges)] = division.merges
        state.tables.fill(
            {
                **inputs,
                "items": items,
                "merges": merges,
                "row_starts": plan.row_starts,
                "context_starts": plan.context_starts,
                "num_tails": plan.num_tails,
                "is_chain": plan.is_chain.astype(np.int32),
                "tail_starts": plan.tail_starts,
                "mask_words": plan.mask_words.view(np.int64),
                "positions": plan.positions,
                "tail_positions": plan.tail_positions,
                "context_slots": plan.context_slots,
            }
        )
