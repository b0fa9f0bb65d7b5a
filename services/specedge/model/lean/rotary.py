"""Rotary position embedding: the frequencies of every scaling variant, and the rotation itself.

The formulas are those of transformers' `ROPE_INIT_FUNCTIONS`, operation by operation, so that both give the same bits.
Frequencies are fixed for a model's life, because cached keys carry their rotation: `dynamic` scales at the model's
longest sequence (where it is the plain embedding), and `longrope` takes the long factors when the model reaches beyond
the length it was first trained at.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from specedge.errors import ModelLoadError

Rope = tuple[torch.Tensor, float]


def rope_of(
    parameters: Mapping[str, Any] | None, head_dim: int, max_positions: int
) -> tuple[npt.NDArray[np.float32], float]:
    """Inverse frequencies float32 [head_dim / 2] and the factor on cosine and sine.

    Args:
        parameters: `rope_parameters` of a transformers configuration.

    Raises:
        ModelLoadError: the type is unknown, or a parameter that it needs is missing or no number.
    """
    if not parameters:
        raise ModelLoadError("the configuration has no rope_parameters")
    kind = parameters.get("rope_type", parameters.get("type"))
    if kind not in _KINDS:
        raise ModelLoadError(f"rope type {kind} is unknown; lean models know {', '.join(_KINDS)}")
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelLoadError(
            f"partial_rotary_factor {parameters['partial_rotary_factor']}: lean models rotate all of a head"
        )
    try:
        inv_freq, scale = _KINDS[kind](parameters, head_dim, max_positions)
    except KeyError as error:
        raise ModelLoadError(f"rope type {kind} needs {error.args[0]} in rope_parameters") from None
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ModelLoadError(f"rope_parameters {dict(parameters)} are no valid {kind} scaling ({error})") from None
    if inv_freq.shape != (head_dim // 2,) or not bool(inv_freq.isfinite().all()):
        raise ModelLoadError(f"rope_parameters {dict(parameters)} do not give {head_dim // 2} finite frequencies")
    return inv_freq.numpy(), float(scale)


def cos_sin(
    positions: torch.Tensor, inv_freq: torch.Tensor, scale: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tables for `rotate`: cosine and signed sine, each [num_rows, 1, head_dim], computed in float32.

    Args:
        positions: int64 [num_rows].
        inv_freq: float32 [head_dim / 2].
    """
    angles = positions.unsqueeze(1) * inv_freq  # [num_rows, head_dim / 2]
    cos, sin = angles.cos() * scale, angles.sin() * scale
    return torch.cat((cos, cos), 1).to(dtype).unsqueeze(1), torch.cat((-sin, sin), 1).to(dtype).unsqueeze(1)


def rotate(heads: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    """Rotate [num_rows, num_heads, head_dim]; a dimension's partner lies half a head away."""
    swapped = heads.roll(heads.shape[-1] // 2, -1)
    return torch.addcmul(swapped.mul_(signed_sin), heads, cos)


def _inv_freq(base: float, dim: int) -> torch.Tensor:
    return 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))


def _default(parameters: Mapping[str, Any], dim: int, max_positions: int) -> Rope:
    return _inv_freq(parameters["rope_theta"], dim), 1.0


def _linear(parameters: Mapping[str, Any], dim: int, max_positions: int) -> Rope:
    return _inv_freq(parameters["rope_theta"], dim) / parameters["factor"], 1.0


def _dynamic(parameters: Mapping[str, Any], dim: int, max_positions: int) -> Rope:
    factor = parameters["factor"]
    stretch = (factor * max_positions / max_positions) - (factor - 1)
    return _inv_freq(parameters["rope_theta"] * stretch ** (dim / (dim - 2)), dim), 1.0


def _llama3(parameters: Mapping[str, Any], dim: int, max_positions: int) -> Rope:
    inv_freq = _inv_freq(parameters["rope_theta"], dim)
    factor, original = parameters["factor"], parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    wavelength = 2 * math.pi / inv_freq
    is_long, is_short = wavelength > original / low, wavelength < original / high
    scaled = torch.where(is_long, inv_freq / factor, inv_freq)
    smooth = (original / wavelength - low) / (high - low)
    blended = (1 - smooth) * scaled / factor + smooth * scaled
    return torch.where(~is_short & ~is_long, blended, scaled), 1.0


def _yarn(parameters: Mapping[str, Any], dim: int, max_positions: int) -> Rope:
    base, original = parameters["rope_theta"], parameters["original_max_position_embeddings"]
    factor = parameters["factor"] or max_positions / original
    scale = parameters.get("attention_factor")
    if scale is None:
        mscale, mscale_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
        scale = _mscale(factor, mscale) / _mscale(factor, mscale_all) if mscale and mscale_all else _mscale(factor, 1)

    def turning_dim(num_rotations: float) -> float:
        return (dim * math.log(original / (num_rotations * 2 * math.pi))) / (2 * math.log(base))

    low, high = turning_dim(parameters.get("beta_fast") or 32), turning_dim(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # a ramp of no width would divide by zero
    kept = 1 - ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    frequencies = base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    return (1.0 / (factor * frequencies)) * (1 - kept) + (1.0 / frequencies) * kept, scale


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(parameters: Mapping[str, Any], dim: int, max_positions: int) -> Rope:
    original = parameters["original_max_position_embeddings"]
    factor = parameters.get("factor") or max_positions / original
    scale = parameters.get("attention_factor")
    if scale is None:
        scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    stretch = torch.tensor(parameters["long_factor" if max_positions > original else "short_factor"])
    return 1.0 / (stretch * parameters["rope_theta"] ** (torch.arange(0, dim, 2).float() / dim)), scale


_KINDS: dict[Any, Callable[[Mapping[str, Any], int, int], Rope]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
