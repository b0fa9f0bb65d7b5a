"""The noise of :mod:`specedge.noise`, computed on the device where the logits are.

torch has neither unsigned 64-bit arithmetic nor a logical right shift. Its int64 wraps on overflow like uint64, so
multiplying and adding give the same bits, and masking off the copies of the sign bit makes an arithmetic shift logical.
The high half of an int64 is read where little-endian machines keep it, and torch is built for no others.
"""

import numpy as np
import torch
from torch import Tensor

from specedge.noise import GOLDEN_RATIO, MAX_UNIFORM, MULTIPLIERS, SHIFTS
from specedge.row_chunks import row_chunks


class TorchNoise:
    """Gumbel noise for a fixed vocabulary on one device."""

    def __init__(self, vocab_size: int, device: torch.device | str) -> None:
        steps = np.arange(1, vocab_size + 1, dtype=np.uint64) * np.uint64(GOLDEN_RATIO)
        self._steps = torch.from_numpy(steps.view(np.int64)).to(device)  # [vocab]

    def gumbel(self, keys: Tensor) -> Tensor:
        """Standard Gumbel noise of every token, float32 [len(keys), vocab].

        Args:
            keys: from :func:`specedge.noise.noise_keys`, as int64 on the device.
        """
        steps = self._steps
        noise = torch.empty(len(keys), len(steps), dtype=torch.float32, device=steps.device)
        for rows in row_chunks(len(keys), len(steps), steps.device):
            _gumbel(_bits(keys[rows, None] + steps), noise[rows])
        return noise

    def gumbel_of(self, keys: Tensor, token_ids: Tensor) -> Tensor:
        """The same noise of some tokens of each key only.

        Args:
            keys: int64 [rows].
            token_ids: int64 [rows, width].

        Returns:
            float32 [rows, width].
        """
        noise = torch.empty(token_ids.shape, dtype=torch.float32, device=self._steps.device)
        return _gumbel(_bits(self._steps[token_ids].add_(keys[:, None])), noise)

    def bits(self, keys: Tensor) -> Tensor:
        """The integer part of the noise of every token: 32 random bits, uint32 [len(keys), vocab]."""
        return _bits(keys[:, None] + self._steps)


def _bits(state: Tensor) -> Tensor:
    """The high half of each finalised state, uint32; the state is overwritten."""
    for shift, multiplier in zip(SHIFTS, MULTIPLIERS, strict=False):
        state.bitwise_xor_((state >> shift).bitwise_and_(2 ** (64 - shift) - 1)).mul_(_as_int64(multiplier))
    state.bitwise_xor_((state >> SHIFTS[2]).bitwise_and_(2 ** (64 - SHIFTS[2]) - 1))
    return state.view(torch.int32)[..., 1::2].view(torch.uint32)


def _gumbel(bits: Tensor, noise: Tensor) -> Tensor:
    noise.copy_(bits)
    noise.add_(0.5).mul_(-(2.0**-32)).clamp_(min=-MAX_UNIFORM)
    return noise.log1p_().neg_().log_().neg_()


def _as_int64(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
