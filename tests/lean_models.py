"""Tiny random models of every lean family, with every feature that changes the arithmetic."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from specedge.model.lean.spec import ModelSpec, spec_of
from specedge.model.lean.weights import ModelWeights, load_weights

VOCAB_SIZE = 97
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **parameters}}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
ROPES: dict[str, dict[str, Any]] = {
    "default": rope("default"),
    "linear": rope("linear", factor=4.0),
    "dynamic": rope("dynamic", factor=2.0),
    "llama3": rope("llama3", **LLAMA3),
    "yarn": rope("yarn", factor=8.0, original_max_position_embeddings=32),
    "yarn-scales": rope(
        "yarn",
        factor=8.0,
        original_max_position_embeddings=32,
        mscale=0.7,
        mscale_all_dim=0.5,
        beta_fast=16.0,
        beta_slow=2.0,
        truncate=False,
    ),
    "longrope": rope(
        "longrope",
        factor=64.0,
        original_max_position_embeddings=4,
        short_factor=[1.0 + 0.1 * i for i in range(4)],
        long_factor=[2.0 + 0.5 * i for i in range(4)],
    ),
}
FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "llama-tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama-one-head": LlamaConfig(**(SHAPE | {"num_attention_heads": 1, "num_key_value_heads": 1})),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen2-sliding": Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16),
    "qwen3-sliding": Qwen3Config(
        **SHAPE,
        head_dim=16,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
    "mistral-sliding": MistralConfig(**SHAPE, sliding_window=5, head_dim=16),
    **{f"llama-{kind}": LlamaConfig(**SHAPE, **parameters) for kind, parameters in ROPES.items()},
}


def save_model(config: PretrainedConfig, folder: Path, **arguments: Any) -> PreTrainedModel:
    """Save a model whose norms and biases are random too, since ones and zeros would hide a mistake in them."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + (0.0 if name.endswith("bias") else 1.0))
    model.save_pretrained(folder, **arguments)
    return model


def load_lean(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[ModelSpec, ModelWeights]:
    spec = spec_of(AutoConfig.from_pretrained(folder))
    return spec, load_weights(folder, spec, dtype=dtype, device=torch.device("cpu"))
