"""FlashAttention over ragged sequences, whichever library has it: torch itself, or the package flash-attn."""

from collections.abc import Callable
from importlib import import_module
from inspect import signature
from typing import Any, Protocol

import torch

from specedge.model.attention.interface import AttentionUnavailable

TORCH_PARAMETERS = ("return_aux", "scale", "window_size", "enable_gqa", "num_splits")


class FlashFunction(Protocol):
    """Attention of ragged rows to ragged keys, sequence by sequence."""

    def __call__(
        self,
        q: torch.Tensor,  # [num_rows, num_heads, head_dim]
        keys: torch.Tensor,  # [num_keys, num_kv_heads, head_dim]
        values: torch.Tensor,  # [num_keys, num_kv_heads, head_dim]
        row_starts: torch.Tensor,  # int32 [num_sequences + 1]
        key_starts: torch.Tensor,  # int32 [num_sequences + 1]
        max_rows: int,
        max_keys: int,
        *,
        scale: float,
        is_causal: bool,
        sliding_window: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention, and the logarithm of the sum of exponentials of each row's scores.

        Args:
            max_rows, max_keys: of a sequence.
            is_causal: the last row of a sequence sees its last key, the one before it all but that, and so on.
            sliding_window: how many of the last keys that it may see a causal row sees; None: all.

        Returns:
            [num_rows, num_heads, head_dim] and float32 [num_heads, num_rows].
        """
        ...


def flash_function() -> FlashFunction:
    """Torch's own function, else that of flash-attn.

    Raises:
        AttentionUnavailable: neither is installed.
    """
    if (varlen := _imported("torch.nn.attention.varlen", "varlen_attn")) is not None:
        known = signature(varlen).parameters
        if all(name in known for name in TORCH_PARAMETERS):
            return through_torch(varlen)
    if (varlen := _imported("flash_attn", "flash_attn_varlen_func")) is not None:
        return through_package(varlen)
    raise AttentionUnavailable(
        f"attention backend 'flash': torch {torch.__version__} has no varlen_attn with {', '.join(TORCH_PARAMETERS)} "
        "(2.13 has one), and flash-attn is not installed; upgrade torch, or pip install 'specedge[flash]'"
    )


def through_torch(varlen_attn: Callable[..., Any]) -> FlashFunction:
    """`torch.nn.attention.varlen.varlen_attn`; one split, so that a sequence's result does not depend on the others."""
    wants_lse = _imported("torch.nn.attention.varlen", "AuxRequest")(lse=True)

    def function(
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        row_starts: torch.Tensor,
        key_starts: torch.Tensor,
        max_rows: int,
        max_keys: int,
        *,
        scale: float,
        is_causal: bool,
        sliding_window: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        output, lse = varlen_attn(
            q,
            keys,
            values,
            row_starts,
            key_starts,
            max_rows,
            max_keys,
            return_aux=wants_lse,
            scale=scale,
            window_size=_window(is_causal, sliding_window),
            enable_gqa=q.shape[1] != keys.shape[1],
            num_splits=1,
        )
        return output, lse

    return function


def through_package(flash_attn_varlen_func: Callable[..., Any]) -> FlashFunction:
    """`flash_attn.flash_attn_varlen_func`, version 2."""

    def function(
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        row_starts: torch.Tensor,
        key_starts: torch.Tensor,
        max_rows: int,
        max_keys: int,
        *,
        scale: float,
        is_causal: bool,
        sliding_window: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        output, lse, _ = flash_attn_varlen_func(
            q,
            keys,
            values,
            row_starts,
            key_starts,
            max_rows,
            max_keys,
            softmax_scale=scale,
            causal=is_causal,
            window_size=_window(is_causal, sliding_window),
            return_attn_probs=True,
        )
        return output, lse

    return function


def _window(is_causal: bool, sliding_window: int | None) -> tuple[int, int]:
    """How many keys to the left and to the right of its own a row sees; -1: all."""
    return -1 if sliding_window is None else sliding_window - 1, 0 if is_causal else -1


def _imported(module: str, name: str) -> Any:
    try:
        return getattr(import_module(module), name, None)
    except ImportError:
        return None
