"""The reference backend, on any device: segment by segment through scaled_dot_product_attention."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from specedge.model.attention.placement import Placement, Table
from specedge.model.attention_plan import WORD_BITS, AttentionPlan


@dataclass(slots=True)
class _Segment:
    rows: slice
    context_slots: torch.Tensor  # int32 [num_context]
    num_tail: int
    mask_words: torch.Tensor | None  # int64 [num_rows, num_words]; None: a chain
    positions: torch.Tensor  # int32 [num_rows]
    tail_positions: torch.Tensor  # int32 [num_tail]
    masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)

    def mask(self, window: int | None) -> torch.Tensor | None:
        """Boolean mask [num_rows, num_context] for a layer with this sliding window; None where all is visible."""
        if window not in self.masks:
            self.masks[window] = self._build(window)
        return self.masks[window]

    def _build(self, window: int | None) -> torch.Tensor | None:
        num_rows, num_context = self.positions.shape[0], self.context_slots.shape[0]
        if num_rows == 1 and self.mask_words is None and window is None:
            return None
        device = self.positions.device
        mask = torch.ones((num_rows, num_context), dtype=torch.bool, device=device)
        tail = mask[:, num_context - self.num_tail :]
        if self.mask_words is None:
            tail.tril_()
        else:
            bits = self.mask_words[:, :, None] >> torch.arange(WORD_BITS, device=device) & 1
            tail.copy_(bits.view(num_rows, -1)[:, : self.num_tail])
        if window is not None:
            key_positions = torch.arange(num_context, dtype=torch.int32, device=device)
            key_positions[num_context - self.num_tail :] = self.tail_positions
            mask &= self.positions[:, None] - key_positions[None, :] < window
        return mask


class SdpaBackend:
    """Implements `AttentionBackend`. Each mask is built once per forward and shared by all layers with its window."""

    name = "sdpa"

    def prepare(self, plan: AttentionPlan, device: torch.device) -> list[_Segment]:
        placement = Placement(
            [
                Table("mask_words", plan.mask_words.shape, is_wide=True),
                Table("positions", plan.positions.shape),
                Table("tail_positions", plan.tail_positions.shape),
                Table("context_slots", plan.context_slots.shape),
            ],
            device,
        )
        placement.fill(
            {
                "mask_words": plan.mask_words.view(np.int64),
                "positions": plan.positions,
                "tail_positions": plan.tail_positions,
                "context_slots": plan.context_slots,
            }
        )
        rows, contexts, tails = plan.row_starts.tolist(), plan.context_starts.tolist(), plan.tail_starts.tolist()
        return [
            _Segment(
                rows=slice(rows[index], rows[index + 1]),
                context_slots=placement["context_slots"][contexts[index] : contexts[index + 1]],
                num_tail=tails[index + 1] - tails[index],
                mask_words=None if is_chain else placement["mask_words"][rows[index] : rows[index + 1]],
                positions=placement["positions"][rows[index] : rows[index + 1]],
                tail_positions=placement["tail_positions"][tails[index] : tails[index + 1]],
            )
            for index, is_chain in enumerate(plan.is_chain.tolist())
        ]

    def attend(
        self,
        state: list[_Segment],
        layer_keys: torch.Tensor,
        layer_values: torch.Tensor,
        q: torch.Tensor,
        *,
        scale: float,
        sliding_window: int | None,
    ) -> torch.Tensor:
        output = torch.empty_like(q, memory_format=torch.contiguous_format)
        grouped = q.shape[1] != layer_keys.shape[1]
        for segment in state:
            output[segment.rows] = scaled_dot_product_attention(
                q[segment.rows].transpose(0, 1)[None],
                layer_keys.index_select(0, segment.context_slots).transpose(0, 1)[None],
                layer_values.index_select(0, segment.context_slots).transpose(0, 1)[None],
                attn_mask=segment.mask(sliding_window),
                scale=scale,
                enable_gqa=grouped,
            )[0].transpose(0, 1)
        return output
