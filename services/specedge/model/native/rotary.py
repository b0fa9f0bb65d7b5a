"""Cosines and sines of rotary positions, computed a block of positions at a time and kept."""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

BLOCK = 1024


class RotaryTable:
    """Grows with the largest position asked for; a position's numbers never depend on when it was first needed.

    Args:
        inv_freq: float32 [head_dim / 2].
        scale: factor on cosines and sines.
    """

    def __init__(self, inv_freq: FloatArray, scale: float) -> None:
        self._inv_freq = inv_freq.astype(np.float32)
        self._scale = np.float32(scale)
        self.cosines: FloatArray = np.empty((0, len(inv_freq)), dtype=np.float32)  # [num_positions, head_dim / 2]
        self.sines = self.cosines

    def reserve(self, num_positions: int) -> None:
        """Make sure that positions below this are there."""
        start = len(self.cosines)
        if num_positions <= start:
            return
        cosines, sines = [self.cosines], [self.sines]
        for first in range(start, num_positions, BLOCK):
            positions = np.arange(first, first + BLOCK, dtype=np.float32)
            angles = (positions[:, None] * self._inv_freq).astype(np.float64)
            cosines.append(np.cos(angles).astype(np.float32) * self._scale)
            sines.append(np.sin(angles).astype(np.float32) * self._scale)
        self.cosines, self.sines = np.concatenate(cosines), np.concatenate(sines)
