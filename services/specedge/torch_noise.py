"""The noise of :mod:`specedge.noise`, computed on the device where the logits are.

torch has neither unsigned 64-bit arithmetic nor a logical right shift. Its int64 wraps on overflow like uint64, so
multiplying and adding give the same bits, and masking off the copies of the sign bit makes an arithmetic shift logical.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specedge.noise import GOLDEN_RATIO, MAX_UNIFORM, MULTIPLIERS, SHIFTS

_MAX_CHUNK: Final = 2**22
"""Elements whose 64-bit intermediates exist at one time (32 MiB), however many positions a call asks for."""


class TorchNoise:
    """Gumbel noise for a fixed vocabulary on one device."""

    def __init__(self, vocab_size: int, device: torch.device | str) -> None:
        steps = np.arange(1, vocab_size + 1, dtype=np.uint64) * np.uint64(GOLDEN_RATIO)
        self._steps = torch.from_numpy(steps.view(np.int64)).to(device)  # [vocab]

    def gumbel(self, keys: NDArray[np.uint64]) -> Tensor:
        """Standard Gumbel noise, float32 [len(keys), vocab], for keys from :func:`specedge.noise.noise_keys`."""
        vocab_size = self._steps.shape[0]
        noise = torch.empty(len(keys), vocab_size, dtype=torch.float32, device=self._steps.device)
        num_rows = max(1, _MAX_CHUNK // vocab_size)
        for start in range(0, len(keys), num_rows):
            chunk = noise[start : start + num_rows]
            chunk.copy_(self.bits(keys[start : start + num_rows]))
            chunk.add_(0.5).mul_(2.0**-32).clamp_(max=MAX_UNIFORM)
            chunk.neg_().log1p_().neg_().log_().neg_()
        return noise

    def bits(self, keys: NDArray[np.uint64]) -> Tensor:
        """The integer part: 32 random bits in an int64, [len(keys), vocab]."""
        state = torch.from_numpy(keys.view(np.int64)).to(self._steps.device)[:, None] + self._steps
        for shift, multiplier in zip(SHIFTS, MULTIPLIERS, strict=False):
            state.bitwise_xor_(_shift_right(state, shift)).mul_(_as_int64(multiplier))
        state.bitwise_xor_(_shift_right(state, SHIFTS[2]))
        return _shift_right(state, 32)


def _shift_right(state: Tensor, count: int) -> Tensor:
    return (state >> count).bitwise_and_(2 ** (64 - count) - 1)


def _as_int64(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
