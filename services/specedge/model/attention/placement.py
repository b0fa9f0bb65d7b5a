"""Arrays of a forward, brought to the device together: one buffer, one copy."""

from collections.abc import Mapping
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
        is_cuda = device.type == "cuda"
        starts, stop = [], 0
        for table in tables:
            starts.append(stop)
            num_bytes = prod(table.shape) * (8 if table.is_wide else 4)
            stop += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        self._host = torch.empty(stop, dtype=torch.uint8, pin_memory=is_cuda)
        self._device = self._host if device.type == "cpu" else torch.empty(stop, dtype=torch.uint8, device=device)
        self._copied = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]
        buffer = self._host.numpy()
        words = {False: self._device.view(torch.int32), True: self._device.view(torch.int64)}
        self._hosts: dict[str, Array] = {}
        self._starts: dict[str, int] = {}
        self._tables: dict[str, torch.Tensor] = {}
        for table, start in zip(tables, starts, strict=True):
            dtype = np.dtype(np.int64 if table.is_wide else np.int32)
            host: Array = np.ndarray(table.shape, dtype, buffer, start)
            strides = [stride // dtype.itemsize for stride in host.strides]
            self._hosts[table.name] = host
            self._starts[table.name] = start
            self._tables[table.name] = words[table.is_wide].as_strided(table.shape, strides, start // dtype.itemsize)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tables[name]

    def fill(self, arrays: Mapping[str, Array]) -> None:
        """Write the arrays to their tables, and copy all tables up to the last value written to the device."""
        if self._copied is not None:
            self._copied.synchronize()  # the copy before this one may still be reading the host's side
        stop = 0
        for name, array in arrays.items():
            host = self._hosts[name]
            host[tuple(slice(0, length) for length in array.shape)] = array
            last = sum((length - 1) * stride for length, stride in zip(array.shape, host.strides, strict=True))
            stop = max(stop, self._starts[name] + last + host.itemsize)
        if self._device is not self._host:
            self._device[:stop].copy_(self._host[:stop], non_blocking=True)
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(self._device.device))


def place(arrays: Mapping[str, Array], device: torch.device) -> dict[str, torch.Tensor]:
    """Arrays on a device, in one copy; on the CPU the arrays themselves."""
    if device.type == "cpu":
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    tables = [Table(name, array.shape, is_wide=array.dtype == np.int64) for name, array in arrays.items()]
    placement = Placement(tables, device)
    placement.fill(arrays)
    return {name: placement[name] for name in arrays}
