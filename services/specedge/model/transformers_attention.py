"""Registers paged tree attention as an attention function of transformers, for every model without a lean one.

This imports transformers' model code, which takes seconds: import it where such a model is made, nowhere else.
"""

from typing import Any

import torch
from transformers import AttentionInterface

from specedge.model.paged_attention import PagedContext
from specedge.model.row_tile import pad_rows

ATTENTION_NAME = "specedge_paged"


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, num_heads, num_rows, head_dim]
    key: torch.Tensor,  # [1, num_kv_heads, num_rows, head_dim]
    value: torch.Tensor,  # [1, num_kv_heads, num_rows, head_dim]
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    paged: PagedContext | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend through the forward's paged context.

    Returns:
        (output [1, num_rows, num_heads, head_dim], None), the shape transformers expects of an attention function.
    """
    if paged is None:
        raise RuntimeError(f"a model loaded with attention '{ATTENTION_NAME}' runs through ModelRunner only")
    num_rows, num_computed = len(paged.slots), query.shape[2]
    output = paged.attend(
        int(module.layer_idx),  # type: ignore[arg-type]
        query[0, :, :num_rows].transpose(0, 1),
        key[0, :, :num_rows].transpose(0, 1),
        value[0, :, :num_rows].transpose(0, 1),
        scaling,
        sliding_window,
    )
    return (output if num_rows == num_computed else pad_rows(output)).unsqueeze(0), None


AttentionInterface.register(ATTENTION_NAME, paged_attention)
