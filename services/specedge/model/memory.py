"""Whether something fits a device, said before it is tried."""

import psutil
import torch

from specedge.container_memory import container_free_bytes
from specedge.errors import ModelLoadError

MIB = 2**20


def free_bytes(device: torch.device) -> int:
    """Memory that can still be allocated on a device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what torch keeps for later can be allocated too
        return torch.cuda.mem_get_info(device)[0]
    available = int(psutil.virtual_memory().available)
    limited = container_free_bytes()
    return available if limited is None else min(available, limited)


def mib(num_bytes: int) -> str:
    """Rounded up, so that what is short is never 0."""
    return f"{-(-num_bytes // MIB):,} MiB"


def require_memory(needed: int, device: torch.device, what: str, remedy: str) -> None:
    """Refuse what does not fit.

    Args:
        needed: bytes.
        what: the beginning of the message, up to "need".
        remedy: its end: which settings help.

    Raises:
        ModelLoadError: says how much is short.
    """
    free = free_bytes(device)
    if needed > free:
        raise ModelLoadError(
            f"{what} {mib(needed)}, and {device} has {mib(free)} free: {mib(needed - free)} are short; {remedy}"
        )
