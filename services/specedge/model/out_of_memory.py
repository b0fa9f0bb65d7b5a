"""Want of memory as one error, MemoryError, whatever noticed it: torch's allocators, numpy, cuBLAS."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

_SAYINGS: Final = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
"""What torch's other runtime errors say."""


@contextmanager
def as_memory_error() -> Iterator[None]:
    """Raise MemoryError for an allocation that failed inside, without what the failed work still holds.

    What the device has begun is waited for: a smaller try may use the same buffers.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        message = str(error).partition("\n")[0]
    else:
        return
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    raise MemoryError(message)


def is_shortage(error: BaseException) -> bool:
    """Whether an error tells that memory could not be had."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error) for saying in _SAYINGS)
