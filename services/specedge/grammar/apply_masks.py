"""Applies packed masks to logits, on any device and without a kernel of its own."""

import torch
from torch import Tensor


def apply_masks(logits: Tensor, masks: Tensor) -> None:
    """Set the logits of the tokens that their row's mask does not allow to -inf, in place.

    Args:
        logits: [rows, vocab] of any floating type; ids past the masks are not allowed.
        masks: int32 [rows, num_words] on the same device; bit ``id % 32`` of word ``id // 32``.
    """
    # Made on the device: a copy from the host would wait for all that was launched before.
    bits = torch.arange(8, dtype=torch.uint8, device=masks.device)
    octets = masks.contiguous().view(torch.uint8)[:, :, None]  # of little-endian words: the lowest ids come first
    is_refused = (octets >> bits).bitwise_and_(1).eq(0).flatten(1)[:, : logits.shape[1]]
    num_masked = is_refused.shape[1]
    logits[:, :num_masked].masked_fill_(is_refused, -torch.inf)
    logits[:, num_masked:] = -torch.inf
