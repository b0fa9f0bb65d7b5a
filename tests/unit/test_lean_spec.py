"""Configurations as lean models read them: rotary scaling bit for bit, and what is refused."""

from typing import Any

import pytest
import torch
from lean_models import FAMILIES, ROPES, SHAPE
from transformers import GPT2Config, LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config, Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from specedge.errors import ModelLoadError
from specedge.model.lean.rotary import cos_sin, rope_of, rotate
from specedge.model.lean.spec import spec_of


@pytest.mark.parametrize("kind", sorted(ROPES.keys() - {"default"}))
@pytest.mark.parametrize("head_dim", [8, 64, 128])
def test_frequencies_are_those_of_transformers(kind: str, head_dim: int) -> None:
    parameters = {**ROPES[kind]["rope_parameters"]}
    for factors in ("short_factor", "long_factor"):
        if factors in parameters:
            parameters[factors] = [1.0 + 0.3 * i for i in range(head_dim // 2)]
    config = LlamaConfig(**SHAPE, head_dim=head_dim, rope_parameters=parameters)
    expected, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, seq_len=config.max_position_embeddings)
    inv_freq, scale = rope_of(config.rope_parameters, head_dim, config.max_position_embeddings)
    assert torch.equal(torch.from_numpy(inv_freq), expected)
    assert scale == factor


def test_longrope_within_the_first_length_takes_the_short_factors() -> None:
    parameters = {**ROPES["longrope"]["rope_parameters"], "original_max_position_embeddings": 256}
    config = LlamaConfig(**SHAPE, rope_parameters=parameters)
    expected, _ = ROPE_INIT_FUNCTIONS["longrope"](config, seq_len=256)
    assert torch.equal(torch.from_numpy(rope_of(parameters, 8, 256)[0]), expected)


def test_a_yarn_ramp_of_no_width_stays_finite() -> None:
    parameters = {**ROPES["yarn"]["rope_parameters"], "beta_fast": 2.0, "beta_slow": 2.0, "truncate": False}
    config = LlamaConfig(**SHAPE, rope_parameters=parameters)
    expected, _ = ROPE_INIT_FUNCTIONS["yarn"](config)
    assert torch.equal(torch.from_numpy(rope_of(config.rope_parameters, 8, 256)[0]), expected)


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    heads = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(0))
    inv_freq = torch.from_numpy(rope_of(ROPES["default"]["rope_parameters"], 16, 64)[0])

    def product(*positions: int) -> torch.Tensor:
        rotated = rotate(heads, *cos_sin(torch.tensor(positions), inv_freq, 1.0, torch.float32))
        torch.testing.assert_close(rotated.norm(dim=-1), heads.norm(dim=-1))
        return (rotated[0] * rotated[1]).sum()

    torch.testing.assert_close(product(3, 9), product(40, 46))
    assert (product(3, 9) - product(3, 10)).abs() > 1e-3


def test_sliding_windows_by_layer() -> None:
    def windows(family: str) -> list[int | None]:
        return [layer.sliding_window for layer in spec_of(FAMILIES[family]).layers]

    assert windows("llama") == windows("qwen2") == windows("mistral") == [None] * 3
    assert windows("mistral-sliding") == [5, 5, 5]
    assert windows("qwen2-sliding") == [None, 6, 6]
    assert windows("qwen3-sliding") == [4, None, 4]


REFUSED: dict[str, tuple[PretrainedConfig, str]] = {
    "family": (GPT2Config(), "model_type gpt2 has no lean model"),
    "activation": (LlamaConfig(**SHAPE, hidden_act="gelu"), "hidden_act silu only, not gelu"),
    "attention bias": (LlamaConfig(**SHAPE, attention_bias=True), "attention_bias"),
    "qwen3 attention bias": (Qwen3Config(**SHAPE, attention_bias=True), "attention_bias"),
    "mlp bias": (LlamaConfig(**SHAPE, mlp_bias=True), "mlp_bias"),
    "quantised": (
        MistralConfig(**SHAPE, quantization_config={"quant_method": "fp8"}),
        "quantization_config .*fp8",
    ),
    "heads": (LlamaConfig(**(SHAPE | {"num_key_value_heads": 3})), "num_attention_heads 4 .* num_key_value_heads 3"),
    "odd head": (Qwen3Config(**SHAPE, head_dim=3), "head_dim 3 is odd"),
    "partial rotation": (
        LlamaConfig(**SHAPE, rope_parameters={"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}),
        "partial_rotary_factor 0.5",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_configuration_without_a_lean_model_is_refused(case: str) -> None:
    config, reason = REFUSED[case]
    with pytest.raises(ModelLoadError, match=reason):
        spec_of(config)


def test_unknown_layer_types_are_refused() -> None:
    config = Qwen2Config(**SHAPE, layer_types=["full_attention"] * 3)
    config.layer_types = ["full_attention", "chunked_attention", "full_attention"]
    with pytest.raises(ModelLoadError, match="chunked_attention"):
        spec_of(config)
    config.layer_types = ["full_attention"] * 2
    with pytest.raises(ModelLoadError, match="names 2 layers, num_hidden_layers 3"):
        spec_of(config)


BAD_ROPES: dict[str, tuple[dict[str, Any] | None, str]] = {
    "none": (None, "no rope_parameters"),
    "unknown": ({"rope_type": "spiral", "rope_theta": 1e4}, "rope type spiral is unknown"),
    "nested": ({"full_attention": {"rope_type": "default"}}, "rope type None is unknown"),
    "no factor": ({"rope_type": "linear", "rope_theta": 1e4}, "linear needs factor"),
    "no number": ({"rope_type": "linear", "rope_theta": 1e4, "factor": "many"}, "no valid linear scaling"),
    "zero": ({"rope_type": "linear", "rope_theta": 1e4, "factor": 0.0}, "4 finite frequencies"),
    "llama3 without lengths": ({"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}, "needs original_max_posi"),
    "too few factors": (
        {**ROPES["longrope"]["rope_parameters"], "long_factor": [1.0, 2.0]},
        "no valid longrope scaling",
    ),
}


@pytest.mark.parametrize("case", BAD_ROPES)
def test_bad_rope_parameters_are_refused(case: str) -> None:
    parameters, reason = BAD_ROPES[case]
    with pytest.raises(ModelLoadError, match=reason):
        rope_of(parameters, 8, 256)
