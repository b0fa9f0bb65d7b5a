"""Which attention backend serves a model on a device: probed, tested against the reference, and said aloud."""

import logging
from typing import Literal

import torch

from specedge.model.attention.flash_backend import FlashBackend
from specedge.model.attention.interface import AttentionBackend, AttentionUnavailable
from specedge.model.attention.sdpa import SdpaBackend
from specedge.model.attention.self_test import TOLERANCES, self_test

BackendName = Literal["auto", "sdpa", "triton", "flash"]

logger = logging.getLogger(__name__)


def choose_backend(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    wanted: BackendName = "auto",
    *,
    num_heads: int,
    num_kv_heads: int,
) -> AttentionBackend:
    """The backend that is wanted, or the fastest one that passes its self-test on this very device.

    The self-test also compiles the kernels for the model's shape, so that no request waits for that.

    Args:
        num_heads, num_kv_heads, head_dim: of the model (per tensor-parallel rank).
        wanted: "auto" takes triton on CUDA, save for float32, which has no tensor cores there, and sdpa elsewhere.

    Raises:
        AttentionUnavailable: a backend asked for by name is not installed, or does not take this device, dtype or
            head dimension. (One that is wrong on this device is replaced by sdpa, with a warning.)
    """
    shape = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    is_for_kernels = device.type == "cuda" and dtype is not torch.float32
    if wanted == "sdpa" or (wanted == "auto" and not is_for_kernels):
        return SdpaBackend()
    try:
        backend = candidate_backend("flash" if wanted == "flash" else "triton", device, dtype, **shape)
    except AttentionUnavailable as error:
        if wanted != "auto":
            raise
        logger.warning("%s; attention backend 'sdpa' is used", error)
        return SdpaBackend()
    return checked_backend(backend, device, dtype, **shape)


def candidate_backend(
    name: Literal["sdpa", "triton", "flash"],
    device: torch.device,
    dtype: torch.dtype,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
) -> AttentionBackend:
    """The backend of this name, not tested yet.

    Raises:
        AttentionUnavailable: it is not installed, or does not take this device, dtype or shape.
    """
    if name == "sdpa":
        return SdpaBackend()
    shape = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    return (_flash if name == "flash" else _triton)(device, dtype, shape)


def _triton(device: torch.device, dtype: torch.dtype, shape: dict[str, int]) -> AttentionBackend:
    if device.type != "cuda":
        raise AttentionUnavailable(f"attention backend 'triton' needs a CUDA device, not {device}")
    try:
        from specedge.model.attention.triton_backend import TritonBackend
    except ImportError as error:
        raise AttentionUnavailable(f"attention backend 'triton' cannot be loaded: {error}") from error
    return TritonBackend(device, dtype, **shape)


def _flash(device: torch.device, dtype: torch.dtype, shape: dict[str, int]) -> AttentionBackend:
    return FlashBackend(
        device,
        dtype,
        num_heads=shape["num_heads"],
        num_kv_heads=shape["num_kv_heads"],
        head_dim=shape["head_dim"],
    )


def checked_backend(
    backend: AttentionBackend,
    device: torch.device,
    dtype: torch.dtype,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
) -> AttentionBackend:
    """The backend if it agrees with the reference on this device, else the reference, with a warning that says why."""
    allowed = TOLERANCES[dtype]
    try:
        found = self_test(
            backend, device=device, dtype=dtype, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim
        )
    # Whatever a compiler, its driver or the device raises, the reference still serves.
    except Exception as error:
        logger.warning("attention backend '%s' failed its self-test, 'sdpa' is used: %s", backend.name, error)
        return SdpaBackend()
    if found > allowed:
        logger.warning(
            "attention backend '%s' differs from 'sdpa' by %.2g on %s with head dimension %d (allowed: %.2g); "
            "'sdpa' is used",
            backend.name,
            found,
            device,
            head_dim,
            allowed,
        )
        return SdpaBackend()
    logger.info("attention backend '%s' (differs from 'sdpa' by %.2g at most)", backend.name, found)
    return backend
