"""Configurations read without transformers say what transformers' own would."""

import json
from pathlib import Path
from typing import Any

import pytest
from lean_models import FAMILIES, ROPES
from transformers import AutoConfig

from specedge.errors import ModelLoadError
from specedge.model.config import PlainConfig, load_config, plain_config
from specedge.model.embedded import resolve_model
from specedge.model.kv_cache import kv_shape
from specedge.model.lean.spec import ModelSpec, spec_of

NEEDS_TRANSFORMERS = {f"llama-{kind}" for kind in ROPES if kind != "default"}


def saved(folder: Path, family: str) -> dict[str, Any]:
    FAMILIES[family].save_pretrained(folder)
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


def fields(spec: ModelSpec) -> dict[str, Any]:
    values = {name: getattr(spec, name) for name in ModelSpec.__slots__}
    return {**values, "inv_freq": spec.inv_freq.tobytes()}


def assert_same(folder: Path) -> None:
    own, other = load_config(folder), AutoConfig.from_pretrained(folder)
    assert fields(spec_of(own)) == fields(spec_of(other))
    assert kv_shape(own) == kv_shape(other)
    assert own.eos_token_id == other.eos_token_id
    assert own.get_text_config().max_position_embeddings == other.get_text_config().max_position_embeddings


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_as_in_transformers(tmp_path: Path, family: str) -> None:
    saved(tmp_path, family)
    assert isinstance(load_config(tmp_path), PlainConfig) == (family not in NEEDS_TRANSFORMERS)
    assert_same(tmp_path)


@pytest.mark.parametrize("role", ["target", "draft"])
def test_the_embedded_pair_needs_no_transformers(role: Any) -> None:
    folder = Path(resolve_model("demo", role))
    assert isinstance(load_config(folder), PlainConfig)
    assert_same(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_parameters": None, "rope_theta": 5e5, "rope_scaling": None},
        {"rope_theta": 5e5},
        {"layer_types": None, "max_window_layers": 1, "use_sliding_window": True, "sliding_window": 4},
        {"num_key_value_heads": None},
        {"partial_rotary_factor": 1.0},
        {"eos_token_id": [1, 2]},
        {"sliding_window": 4096},
        {"bos_token_id": 5, "unheard_of": {"a": 1}},
    ],
)
def test_other_spellings_mean_what_they_mean_to_transformers(tmp_path: Path, change: dict[str, Any]) -> None:
    content = {**saved(tmp_path, "qwen3"), **change}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert_same(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gemma3_text"},
        {"hidden_size": "32"},
        {"hidden_size": 33},
        {"num_hidden_layers": 0},
        {"num_attention_heads": True},
        {"rms_norm_eps": 1},
        {"tie_word_embeddings": 1},
        {"quantization_config": {"quant_method": "fp8"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": "10000"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "factor": 2.0}},
        {"eos_token_id": "2"},
        {"eos_token_id": [1, None]},
    ],
)
def test_whatever_is_not_plain_goes_to_transformers(tmp_path: Path, change: dict[str, Any]) -> None:
    content = saved(tmp_path, "llama")
    assert plain_config(content) is not None
    assert plain_config({**content, **change}) is None
    for name in ("head_dim", "mlp_bias", "vocab_size", "rope_parameters"):
        assert plain_config({key: value for key, value in content.items() if key != name}) is None


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"config\.json: is missing"):
        load_config(tmp_path)
