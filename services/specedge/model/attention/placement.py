"""Arrays of a forward, brought to the device together: one buffer, one copy."""

from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
import torch

_ALIGNMENT = 64  # bytes; compiled kernels may then rely on aligned tables

Array = npt.NDArray[np.int32] | npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Table:
    """Room for one array of int32 or int64 values, of this shape at most."""

    name: str
    shape: tuple[int, ...]
    is_wide: bool = False


class Placement:
    """Tables in one device buffer with a host copy beside it, which is pinned for CUDA.

    Addresses stay the same however often the tables are filled, as captured graphs need. An array that is smaller than
    its table fills the beginning of each dimension.

    Args:
        tables: in order; whatever varies most in size comes last, since a copy ends with the last array's last value.
        device: where the tables are used.
    """

    def __init__(self, tables: list[Table], device: torch.device) -> None:
        spans = []
        stop = 0
        for table in tables:
            num_bytes = prod(table.shape) * (8 if table.is_wide else 4)
            spans.append((table, stop, num_bytes))
            stop += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        is_cuda = device.type == "cuda"
        self._host = torch.empty(stop, dtype=torch.uint8, pin_memory=is_cuda)
        self._device = self._host if device.type == "cpu" else torch.empty(stop, dtype=torch.uint8, device=device)
        self._copied = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]
        self._offsets = {table.name: start for table, start, _ in spans}
        self._hosts: dict[str, Array] = {}
        self._tables: dict[str, torch.Tensor] = {}
        for table, start, num_bytes in spans:
            dtype = torch.int64 if table.is_wide else torch.int32
            self._hosts[table.name] = self._host[start : start + num_bytes].view(dtype).view(table.shape).numpy()
            self._tables[table.name] = self._device[start : start + num_bytes].view(dtype).view(table.shape)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tables[name]

    def host(self, name: str) -> Array:
        """The host's side of a table, for what must be written beyond the arrays given to `fill`."""
        return self._hosts[name]

    def fill(self, arrays: dict[str, Array]) -> None:
        """Write the arrays, one for each table, and copy them to the device."""
        if self._copied is not None:
            self._copied.synchronize()  # the copy before this one may still be reading the host's side
        stop = 0
        for name, array in arrays.items():
            host = self._hosts[name]
            host[tuple(slice(0, length) for length in array.shape)] = array
            last = sum((length - 1) * stride for length, stride in zip(array.shape, host.strides, strict=True))
            stop = max(stop, self._offsets[name] + last + host.itemsize)
        if self._device is not self._host:
            self._device[:stop].copy_(self._host[:stop], non_blocking=True)
        if self._copied is not None:
            self._copied.record()
