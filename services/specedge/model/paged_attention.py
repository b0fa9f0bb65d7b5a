"""Tree attention over paged KV, for the lean models and for those of transformers (`transformers_attention.py`).

Reference backend: each session's keys are gathered by slot and go through scaled_dot_product_attention together with
that session's queries. There is no mask over other sessions and none over max_len; a session's own mask is built once
per forward and shared by all layers with the same window.

Where keys have 16 bits on the CPU, attention itself is computed in float64 and rounded once, to the output's 16 bits:
the order of its sums (by the number of queries, by the slots of a tree) leaves no trace.
"""

from dataclasses import dataclass, field

import torch
from torch.nn.functional import scaled_dot_product_attention

from specedge.model.batch import PackedBatch, Segment
from specedge.model.kv_cache import KVCache
from specedge.model.row_tile import is_rounded


@dataclass(slots=True)
class _DeviceSegment:
    rows: slice
    context_slots: torch.Tensor  # [num_context]
    num_tail: int
    tail_mask: torch.Tensor | None  # bool [num_rows, num_tail]
    positions: torch.Tensor  # [num_rows]
    tail_positions: torch.Tensor | None  # [num_tail]
    masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)

    def mask(self, window: int | None) -> torch.Tensor | None:
        """Boolean mask [num_rows, num_context] for a layer with this sliding window; None where all is visible."""
        if window is not None and window >= self.context_slots.shape[0]:
            window = None
        if window not in self.masks:
            self.masks[window] = self._build(window)
        return self.masks[window]

    def _build(self, window: int | None) -> torch.Tensor | None:
        num_rows, num_context = self.positions.shape[0], self.context_slots.shape[0]
        if num_rows == 1 and self.tail_mask is None and window is None:
            return None
        device = self.positions.device
        mask = torch.ones((num_rows, num_context), dtype=torch.bool, device=device)
        tail = mask[:, num_context - self.num_tail :]
        if self.tail_mask is None:
            tail.tril_()
        else:
            tail.copy_(self.tail_mask)
        if window is not None:
            key_positions = torch.arange(num_context, device=device)
            key_positions[num_context - self.num_tail :] = (
                self.positions if self.tail_positions is None else self.tail_positions
            )
            mask &= self.positions[:, None] - key_positions[None, :] < window
        return mask


class PagedContext:
    """Everything attention needs besides queries, keys and values; one per forward."""

    def __init__(self, batch: PackedBatch, cache: KVCache, device: torch.device) -> None:
        self._cache = cache
        self.slots = torch.from_numpy(batch.slots).to(device, non_blocking=True)
        self.positions = torch.from_numpy(batch.positions).to(device, non_blocking=True)
        self.segments: list[_DeviceSegment] = []
        start = 0
        for segment in batch.segments:
            self.segments.append(self._place(segment, slice(start, start + segment.num_rows), device))
            start += segment.num_rows

    def _place(self, segment: Segment, rows: slice, device: torch.device) -> _DeviceSegment:
        mask, tail_positions = segment.mask, segment.tail_positions
        return _DeviceSegment(
            rows=rows,
            context_slots=torch.from_numpy(segment.context_slots).to(device, non_blocking=True),
            num_tail=segment.num_rows if mask is None else mask.shape[1],
            tail_mask=None if mask is None else torch.from_numpy(mask).to(device, non_blocking=True),
            positions=self.positions[rows],
            tail_positions=None
            if tail_positions is None
            else torch.from_numpy(tail_positions).to(device, non_blocking=True),
        )

    def attend(
        self,
        layer: int,
        query: torch.Tensor,  # [num_rows, num_heads, head_dim]
        key: torch.Tensor,  # [num_rows, num_kv_heads, head_dim]
        value: torch.Tensor,  # [num_rows, num_kv_heads, head_dim]
        scale: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Store a layer's keys and values in their slots and attend, session by session.

        Returns:
            [num_rows, num_heads, head_dim]
        """
        keys, values = self._cache.layer(layer)
        keys.index_copy_(0, self.slots, key)
        values.index_copy_(0, self.slots, value)
        grouped = query.shape[1] != key.shape[1]
        dtype = torch.float64 if is_rounded(query.dtype, query.device) else query.dtype
        outputs = [
            scaled_dot_product_attention(
                query[segment.rows].to(dtype).transpose(0, 1).unsqueeze(0),
                keys.index_select(0, segment.context_slots).to(dtype).transpose(0, 1).unsqueeze(0),
                values.index_select(0, segment.context_slots).to(dtype).transpose(0, 1).unsqueeze(0),
                attn_mask=segment.mask(window),
                scale=scale,
                enable_gqa=grouped,
            )[0].transpose(0, 1)
            for segment in self.segments
        ]
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).to(query.dtype)
