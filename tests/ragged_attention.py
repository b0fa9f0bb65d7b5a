"""`torch.nn.attention.varlen.varlen_attn` written out, since its own kernel is for CUDA only."""

import torch
from torch.nn.attention.varlen import AuxRequest


def varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: AuxRequest | None = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    num_splits: int | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The same contract: masks are aligned with the last row and key, a row that sees nothing has an infinite LSE."""
    assert scale is not None and cu_seq_k is not None and seqused_k is None and block_table is None
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and query.stride(2) == key.stride(2) == 1
    assert query.shape[1] == key.shape[1] or enable_gqa
    starts_q, starts_k = cu_seq_q.tolist(), cu_seq_k.tolist()
    assert starts_q[-1] == len(query) and starts_k[-1] == len(key) == len(value)
    output = torch.zeros_like(query)
    lse = torch.full((query.shape[1], len(query)), torch.inf)
    group = query.shape[1] // key.shape[1]
    for begin_q, end_q, begin_k, end_k in zip(starts_q, starts_q[1:], starts_k, starts_k[1:], strict=False):
        num_q, num_k = end_q - begin_q, end_k - begin_k
        assert num_q <= max_q and num_k <= max_k
        if not num_k:
            continue
        q = query[begin_q:end_q].transpose(0, 1).float()
        k, v = (each[begin_k:end_k].float().repeat_interleave(group, dim=1).transpose(0, 1) for each in (key, value))
        own = torch.arange(num_q)[:, None] + num_k - num_q
        others = torch.arange(num_k)[None]
        hidden = torch.zeros((num_q, num_k), dtype=torch.bool)
        if window_size[0] >= 0:
            hidden |= others < own - window_size[0]
        if window_size[1] >= 0:
            hidden |= others > own + window_size[1]
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(hidden, -torch.inf)
        lse[:, begin_q:end_q] = scores.logsumexp(-1)
        output[begin_q:end_q] = (scores.softmax(-1) @ v).transpose(0, 1).to(query.dtype)
    return (output, lse) if return_aux is not None and return_aux.lse else output
