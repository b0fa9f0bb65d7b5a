"""What processes take of the system: memory, file descriptors, threads; and whether it grows."""

from collections.abc import Sequence
from dataclasses import dataclass

import psutil

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process holds."""

    rss_mib: float
    num_fds: int
    num_threads: int

    @classmethod
    def of(cls, process: psutil.Process) -> "Usage":
        """Now."""
        with process.oneshot():
            return cls(process.memory_info().rss / MIB, process.num_fds(), process.num_threads())


def slope(times_s: Sequence[float], values: Sequence[float]) -> float:
    """Growth per second by least squares; 0 of fewer than two moments."""
    if len(times_s) < 2:
        return 0.0
    mean_s, mean = sum(times_s) / len(times_s), sum(values) / len(values)
    spread = sum((time_s - mean_s) ** 2 for time_s in times_s)
    return sum((t - mean_s) * (value - mean) for t, value in zip(times_s, values, strict=True)) / spread
