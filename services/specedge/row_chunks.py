"""How many rows of a wide table are worked on at one time."""

from collections.abc import Iterator
from typing import Final

import torch

_MAX_CHUNK: Final = 2**22
"""Elements of which intermediate results exist at one time (32 MiB in 64 bits), however many rows a call has."""

_MAX_CPU_CHUNK: Final = 2**18
"""The same on a CPU (2 MiB): about what a core's own cache takes."""


def row_chunks(num_rows: int, width: int, device: torch.device) -> Iterator[slice]:
    """Slices of the rows of a table, in order."""
    step = max(1, (_MAX_CPU_CHUNK if device.type == "cpu" else _MAX_CHUNK) // width)
    return (slice(start, start + step) for start in range(0, num_rows, step))
