"""Copies between the host and the device of a model: few, and none that waits for more than it must.

A copy from ordinary host memory makes the host wait for everything the device was told before, so what goes to a CUDA
device lies in pinned memory; torch keeps such a buffer until the device has read it. On the CPU nothing is copied.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT = 16
"""Bytes; every array in a buffer begins at a multiple, so that the device may read it in any type."""


class Upload:
    """Arrays that go to a device together, in one copy."""

    def __init__(self) -> None:
        self._arrays: list[NDArray[np.generic]] = []

    def add(self, array: NDArray[np.generic]) -> int:
        """Adds an array, and returns its place in what `send` returns."""
        self._arrays.append(np.ascontiguousarray(array))
        return len(self._arrays) - 1

    def send(self, device: torch.device) -> list[Tensor]:
        """The arrays on the device, in order; the host does not wait."""
        if device.type == "cpu":
            return [torch.from_numpy(array) for array in self._arrays]
        return unpacked(
            packed(self._arrays, is_pinned=device.type == "cuda").to(device, non_blocking=True), self._arrays
        )


def packed(arrays: list[NDArray[np.generic]], *, is_pinned: bool) -> Tensor:
    """The bytes of all arrays in one buffer, uint8 [num_bytes]."""
    starts = _starts(arrays)
    buffer = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=is_pinned)
    target = buffer.numpy()
    for array, start in zip(arrays, starts, strict=False):
        target[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
    return buffer


def unpacked(buffer: Tensor, arrays: list[NDArray[np.generic]]) -> list[Tensor]:
    """Views of a packed buffer with the types and shapes of the arrays in it."""
    return [
        buffer[start : start + array.nbytes].view(_dtype(array)).view(array.shape)
        for array, start in zip(arrays, _starts(arrays), strict=False)
    ]


class Fetching:
    """A device's results on their way to the host.

    All that is ever waited for is their copy, which the device makes after everything launched before it.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._copied: Any = None  # an event; on a GPU only
        if tensor.device.type != "cuda":
            self._host = tensor.cpu()
            return
        self._host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        self._host.copy_(tensor, non_blocking=True)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record(torch.cuda.current_stream(tensor.device))

    @property
    def is_ready(self) -> bool:
        """Whether the copy has been made."""
        return self._copied is None or bool(self._copied.query())

    def result(self) -> NDArray[np.generic]:
        """Waits for the copy."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host.numpy()


def fetch(tensor: Tensor) -> NDArray[np.generic]:
    """A device's results on the host; waits until the device has computed them."""
    return Fetching(tensor).result()


def _starts(arrays: list[NDArray[np.generic]]) -> list[int]:
    """Where each array begins in a packed buffer, and where the buffer ends."""
    starts = [0]
    for array in arrays:
        starts.append(-(-(starts[-1] + array.nbytes) // _ALIGNMENT) * _ALIGNMENT)
    return starts


def _dtype(array: NDArray[np.generic]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype=array.dtype)).dtype
