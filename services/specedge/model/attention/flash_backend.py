"""FlashAttention for prompts and long prefixes, merged with the trees' small masked tails.

Its kernels take a paged cache in pages of 256 tokens only, so every layer's keys and values are gathered first. That
takes memory for the contexts of a step in one layer, and pays where arithmetic, not memory, bounds attention.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from specedge.model.attention.flash_function import FlashFunction, flash_function
from specedge.model.attention.flash_plan import RaggedPart, TailPart, divide_for_flash
from specedge.model.attention.interface import AttentionUnavailable
from specedge.model.attention.placement import Array, Placement, Table
from specedge.model.attention.sdpa import SdpaBackend
from specedge.model.attention_plan import WORD_BITS, AttentionPlan

DTYPES = (torch.bfloat16, torch.float16)
MAX_HEAD_DIM = 256
MIN_CAPABILITY = 8


@dataclass(frozen=True, slots=True)
class _Ragged:
    rows: torch.Tensor  # int64 [num_rows]
    row_starts: torch.Tensor  # int32 [num_segments + 1]
    slots: torch.Tensor  # int32 [num_keys]
    key_starts: torch.Tensor  # int32 [num_segments + 1]
    max_rows: int
    max_keys: int


@dataclass(frozen=True, slots=True)
class _Tails:
    rows: torch.Tensor  # int32 [num_trees * max_rows]
    places: torch.Tensor  # int32 [num_tree_rows]
    slots: torch.Tensor  # int32 [num_trees * max_tail]
    mask: torch.Tensor  # bool [num_trees, max_rows, max_tail]


@dataclass(frozen=True, slots=True)
class _Placed:
    """A plan on the device, divided for layers without or for those with a sliding window."""

    causal: _Ragged | None
    prefixes: _Ragged | None
    empty_rows: torch.Tensor | None  # int64, of `prefixes`: rows without any; None: there are none such
    tails: list[_Tails]  # of the first rows of `prefixes`, in order
    other: list[Any]  # the reference's state: trees, where a window shortens their prefix


@dataclass(frozen=True, slots=True)
class FlashState:
    """A plan, and what layers without (False) and with (True) a window need on the device, once one of them has run."""

    plan: AttentionPlan
    device: torch.device
    max_position: int
    placed: dict[bool, _Placed] = field(default_factory=dict)


class FlashBackend:
    """Implements `AttentionBackend`, for one model.

    The parts of a row are merged in float32. In layers with a sliding window that hides any of a step's contexts, trees
    are left to the reference.

    Args:
        device: where it runs.
        dtype: of queries, keys and values.
        num_heads, num_kv_heads, head_dim: of the model (per tensor-parallel rank).
        function: attends to ragged rows; by default that of torch or of flash-attn, where it takes all of the above.

    Raises:
        AttentionUnavailable: there is no such function here, or it does not take this device, dtype or head dimension.
    """

    name = "flash"

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        function: FlashFunction | None = None,
    ) -> None:
        if function is None:
            _check(device, dtype, head_dim)
            function = flash_function()
        self._function = function
        self._num_kv_heads = num_kv_heads
        self._group = num_heads // num_kv_heads
        self._reference = SdpaBackend()

    def prepare(self, plan: AttentionPlan, device: torch.device) -> FlashState:
        """Nothing is placed yet, since only the layers tell whether they have windows."""
        return FlashState(plan, device, int(plan.positions.max()))

    def attend(
        self,
        state: FlashState,
        layer_keys: torch.Tensor,
        layer_values: torch.Tensor,
        q: torch.Tensor,
        *,
        scale: float,
        sliding_window: int | None,
    ) -> torch.Tensor:
        hides = sliding_window is not None and sliding_window <= state.max_position
        window = sliding_window if hides else None
        placed = state.placed.get(hides)
        if placed is None:
            placed = state.placed[hides] = self._place(state, is_windowed=hides)
        if placed.other:
            output = self._reference.attend(
                placed.other, layer_keys, layer_values, q, scale=scale, sliding_window=window
            )
        else:
            output = torch.empty_like(q, memory_format=torch.contiguous_format)
        if (part := placed.causal) is not None:
            attended, _ = self._function(
                q.index_select(0, part.rows),
                layer_keys.index_select(0, part.slots),
                layer_values.index_select(0, part.slots),
                part.row_starts,
                part.key_starts,
                part.max_rows,
                part.max_keys,
                scale=scale,
                is_causal=True,
                sliding_window=window,
            )
            output.index_copy_(0, part.rows, attended)
        if (part := placed.prefixes) is not None:
            attended, lse = self._attend_to_prefixes(part, layer_keys, layer_values, q, scale)
            if placed.empty_rows is not None:
                attended.index_fill_(0, placed.empty_rows, 0)
                lse.index_fill_(0, placed.empty_rows, -torch.inf)
            stop = 0
            for tails in placed.tails:
                rows = slice(stop, stop := stop + len(tails.places))
                tail, tail_lse = self._attend_to_tails(tails, layer_keys, layer_values, q, scale)
                attended[rows] = _merged(attended[rows], lse[rows], tail, tail_lse)
            output.index_copy_(0, part.rows, attended)
        return output

    def _attend_to_prefixes(
        self, part: _Ragged, layer_keys: torch.Tensor, layer_values: torch.Tensor, q: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention [num_rows, num_heads, head_dim] and log-sum-exp [num_rows, num_heads] of unmasked rows.

        Without a mask, the query heads of a KV head may be rows of their own, so that its keys are read only once.
        """
        num_kv_heads, group = self._num_kv_heads, self._group
        num_rows, head_dim = len(part.rows), q.shape[2]
        if not part.max_keys:
            shape = (num_rows, num_kv_heads * group)
            return q.new_zeros((*shape, head_dim)), torch.zeros(shape, dtype=torch.float32, device=q.device)
        packed = q.index_select(0, part.rows).view(num_rows, num_kv_heads, group, head_dim).transpose(1, 2)
        attended, lse = self._function(
            packed.reshape(num_rows * group, num_kv_heads, head_dim),
            layer_keys.index_select(0, part.slots),
            layer_values.index_select(0, part.slots),
            part.row_starts * group,
            part.key_starts,
            part.max_rows * group,
            part.max_keys,
            scale=scale,
            is_causal=False,
            sliding_window=None,
        )
        return (
            attended.reshape(num_rows, group, num_kv_heads, head_dim).transpose(1, 2).flatten(1, 2),
            lse.reshape(num_kv_heads, num_rows, group).transpose(0, 1).flatten(1, 2),
        )

    def _attend_to_tails(
        self, tails: _Tails, layer_keys: torch.Tensor, layer_values: torch.Tensor, q: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention float32 [num_tree_rows, num_heads, head_dim] and log-sum-exp [num_tree_rows, num_heads]."""
        num_trees, max_rows, max_tail = tails.mask.shape
        num_kv_heads, group, head_dim = self._num_kv_heads, self._group, q.shape[2]
        queries = q.index_select(0, tails.rows).view(num_trees, max_rows, num_kv_heads, group, head_dim)
        keys, values = (
            stored.index_select(0, tails.slots)
            .view(num_trees, max_tail, num_kv_heads, head_dim)
            .transpose(1, 2)
            .float()
            for stored in (layer_keys, layer_values)
        )
        packed = queries.permute(0, 2, 3, 1, 4).flatten(2, 3).float()
        apart = (num_trees, num_kv_heads, group, max_rows)
        scores = torch.matmul(packed, keys.transpose(2, 3)).mul_(scale).view(*apart, max_tail)
        scores.masked_fill_(~tails.mask[:, None, None], -torch.inf)
        lse = scores.logsumexp(dim=-1, keepdim=True)
        weights = scores.sub_(lse).exp_().flatten(2, 3)
        attended = torch.matmul(weights, values).view(*apart, head_dim)
        attended = attended.permute(0, 3, 1, 2, 4).reshape(num_trees * max_rows, num_kv_heads * group, head_dim)
        lse = lse.permute(0, 3, 1, 2, 4).reshape(num_trees * max_rows, num_kv_heads * group)
        return attended.index_select(0, tails.places), lse.index_select(0, tails.places)

    def _place(self, state: FlashState, *, is_windowed: bool) -> _Placed:
        plan, device = state.plan, state.device
        division = divide_for_flash(plan, is_windowed=is_windowed)
        arrays: dict[str, Array] = {}
        for name, ragged in (("causal", division.causal), ("prefixes", division.prefixes)):
            if ragged is not None:
                arrays |= {f"{name}.{field}": getattr(ragged, field) for field in _RAGGED}
        for number, tails in enumerate(division.tails):
            arrays |= {f"places.{number}": tails.places, f"rows.{number}": tails.rows, f"slots.{number}": tails.slots}
            arrays[f"words.{number}"] = tails.words.view(np.int64)
        arrays["empty_rows"] = np.flatnonzero(division.is_empty)
        placement = Placement(
            [Table(name, array.shape, is_wide=array.dtype == np.int64) for name, array in arrays.items()], device
        )
        placement.fill(arrays)
        other: list[Any] = []
        if is_windowed and not plan.is_chain.all():
            segments = self._reference.prepare(plan, device)
            other = [segment for segment, is_chain in zip(segments, plan.is_chain, strict=True) if not is_chain]
        return _Placed(
            causal=_ragged(division.causal, "causal", placement),
            prefixes=_ragged(division.prefixes, "prefixes", placement),
            empty_rows=placement["empty_rows"] if division.is_empty.any() else None,
            tails=[_tails(tails, number, placement) for number, tails in enumerate(division.tails)],
            other=other,
        )


_RAGGED = ("rows", "row_starts", "slots", "key_starts")


def _ragged(part: RaggedPart | None, name: str, placement: Placement) -> _Ragged | None:
    if part is None:
        return None
    rows, row_starts, slots, key_starts = (placement[f"{name}.{field}"] for field in _RAGGED)
    return _Ragged(rows, row_starts, slots, key_starts, part.max_rows, part.max_keys)


def _tails(part: TailPart, number: int, placement: Placement) -> _Tails:
    words = placement[f"words.{number}"].view(part.num_trees, part.max_rows, -1, 1)
    bits = words >> torch.arange(WORD_BITS, device=words.device) & 1
    mask = bits.flatten(2)[:, :, : part.max_tail].bool()
    return _Tails(placement[f"rows.{number}"], placement[f"places.{number}"], placement[f"slots.{number}"], mask)


def _merged(
    first: torch.Tensor, first_lse: torch.Tensor, second: torch.Tensor, second_lse: torch.Tensor
) -> torch.Tensor:
    """Attention [num_rows, num_heads, head_dim] to two sets of keys, from that to each; the second is never empty."""
    weight = torch.sigmoid(first_lse - second_lse)[..., None]
    return first.float() * weight + second * (1 - weight)


def _check(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """Refuse what FlashAttention's kernels do not take."""
    if device.type != "cuda":
        raise AttentionUnavailable(f"attention backend 'flash' needs a CUDA device, not {device}")
    if (capability := torch.cuda.get_device_capability(device)) < (MIN_CAPABILITY, 0):
        raise AttentionUnavailable(
            f"attention backend 'flash' needs compute capability {MIN_CAPABILITY}.0 or more; {device} has "
            f"{'.'.join(map(str, capability))}"
        )
    if dtype not in DTYPES:
        raise AttentionUnavailable(f"attention backend 'flash' takes bfloat16 and float16, not {dtype}")
    if head_dim % 8 or head_dim > MAX_HEAD_DIM:
        raise AttentionUnavailable(
            f"attention backend 'flash' takes head dimensions that are multiples of 8, up to {MAX_HEAD_DIM}, "
            f"not {head_dim}"
        )
