"""What a lean model is made of, read from a transformers configuration: family differences as data."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from specedge.errors import ModelLoadError
from specedge.model.lean.rotary import rope_of


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One decoder layer.

    Attributes:
        sliding_window: how many of the latest positions, its own included, a row sees; None: all of them.
    """

    sliding_window: int | None


@dataclass(frozen=True, slots=True, eq=False)
class ModelSpec:
    """A dense decoder: RMS norms, rotary grouped-query attention, SiLU-gated MLP.

    Attributes:
        inv_freq: float32 [head_dim / 2], rope scaling applied.
        rope_scale: factor on cosine and sine (yarn and longrope; 1 otherwise).
        max_positions: longest sequence in tokens.
    """

    family: str
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_eps: float
    is_tied: bool
    has_qk_norm: bool
    has_qkv_bias: bool
    layers: tuple[LayerSpec, ...]
    inv_freq: npt.NDArray[np.float32]
    rope_scale: float
    max_positions: int


@dataclass(frozen=True, slots=True)
class _Family:
    has_qk_norm: bool = False
    has_qkv_bias: bool = False
    windows: str = "none"  # none: no layer has one; all: every layer; layer_types: as config.layer_types says


FAMILIES = {
    "llama": _Family(),
    "mistral": _Family(windows="all"),
    "qwen2": _Family(has_qkv_bias=True, windows="layer_types"),
    "qwen3": _Family(has_qk_norm=True, windows="layer_types"),
}
_UNSUPPORTED = ("attention_bias", "mlp_bias", "quantization_config")


def spec_of(config: Any) -> ModelSpec:
    """The model that a transformers configuration describes.

    Raises:
        ModelLoadError: it is of another family, or asks for what the lean models do not compute; names it.
    """
    name = str(config.model_type)
    family = FAMILIES.get(name)
    if family is None:
        raise ModelLoadError(f"model_type {name} has no lean model; there is one for {', '.join(FAMILIES)}")
    if config.hidden_act != "silu":
        raise ModelLoadError(f"lean {name} models compute hidden_act silu only, not {config.hidden_act}")
    for feature in _UNSUPPORTED:
        if value := getattr(config, feature, None):
            raise ModelLoadError(f"lean {name} models do not support {feature} ({value})")
    num_heads = int(config.num_attention_heads)
    num_kv_heads = int(getattr(config, "num_key_value_heads", None) or num_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // num_heads)
    if num_heads % num_kv_heads:
        raise ModelLoadError(f"num_attention_heads {num_heads} is no multiple of num_key_value_heads {num_kv_heads}")
    if head_dim % 2:
        raise ModelLoadError(f"head_dim {head_dim} is odd; rotary embedding needs pairs")
    inv_freq, rope_scale = rope_of(config.rope_parameters, head_dim, int(config.max_position_embeddings))
    return ModelSpec(
        family=name,
        hidden_size=int(config.hidden_size),
        intermediate_size=int(config.intermediate_size),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=int(config.vocab_size),
        rms_eps=float(config.rms_norm_eps),
        is_tied=bool(config.tie_word_embeddings),
        has_qk_norm=family.has_qk_norm,
        has_qkv_bias=family.has_qkv_bias,
        layers=_layers(config, family),
        inv_freq=inv_freq,
        rope_scale=rope_scale,
        max_positions=int(config.max_position_embeddings),
    )


def _layers(config: Any, family: _Family) -> tuple[LayerSpec, ...]:
    num_layers = int(config.num_hidden_layers)
    if family.windows == "none":
        return (LayerSpec(None),) * num_layers
    window = config.sliding_window
    if family.windows == "all":
        return (LayerSpec(window),) * num_layers
    kinds = {"full_attention": LayerSpec(None), "sliding_attention": LayerSpec(window)}
    if unknown := sorted(set(config.layer_types) - set(kinds)):
        raise ModelLoadError(f"layer_types has {unknown[0]}; lean models know {' and '.join(kinds)}")
    if len(config.layer_types) != num_layers:
        raise ModelLoadError(f"layer_types names {len(config.layer_types)} layers, num_hidden_layers {num_layers}")
    return tuple(kinds[kind] for kind in config.layer_types)
