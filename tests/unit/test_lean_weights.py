"""Checkpoints as lean models read them: every way of storing them gives the same weights, bad ones are refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lean_models import FAMILIES, load_lean, save_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from specedge.errors import ModelLoadError
from specedge.model.lean.spec import spec_of
from specedge.model.lean.weights import ModelWeights, load_weights

CPU = torch.device("cpu")
K_PROJ, DOWN = "model.layers.2.self_attn.k_proj.weight", "model.layers.0.mlp.down_proj.weight"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Tensors = dict[str, torch.Tensor]


def flat(weights: ModelWeights) -> list[torch.Tensor]:
    layers = [getattr(layer, name) for layer in weights.layers for name in layer.__dataclass_fields__]
    return [weights.embed, weights.final_norm, weights.head, *(tensor for tensor in layers if tensor is not None)]


def edit(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_fused_tensors_hold_the_parts_in_order(tmp_path: Path) -> None:
    model = save_model(FAMILIES["qwen2"], tmp_path)
    _, weights = load_lean(tmp_path)
    state, layer, prefix = model.state_dict(), weights.layers[1], "model.layers.1."
    for kind, fused in (("weight", layer.qkv), ("bias", layer.qkv_bias)):
        assert torch.equal(fused, torch.cat([state[f"{prefix}self_attn.{part}_proj.{kind}"] for part in "qkv"]))
    gate_up = [state[f"{prefix}mlp.{part}_proj.weight"] for part in ("gate", "up")]
    assert torch.equal(layer.gate_up, torch.cat(gate_up))
    assert torch.equal(layer.o, state[prefix + "self_attn.o_proj.weight"])
    assert torch.equal(layer.down, state[prefix + "mlp.down_proj.weight"])
    assert torch.equal(layer.input_norm, state[prefix + "input_layernorm.weight"])
    assert torch.equal(layer.post_norm, state[prefix + "post_attention_layernorm.weight"])
    assert torch.equal(weights.head, state["lm_head.weight"]) and weights.head is not weights.embed
    assert layer.q_norm is None and layer.k_norm is None


def test_shards_and_one_file_give_the_same(tmp_path: Path) -> None:
    save_model(FAMILIES["qwen3"], tmp_path / "single")
    save_model(FAMILIES["qwen3"], tmp_path / "sharded", max_shard_size="10KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    single, sharded = (flat(load_lean(tmp_path / name)[1]) for name in ("single", "sharded"))
    assert len(single) == 3 + 3 * 8
    assert all(map(torch.equal, single, sharded))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(stored: torch.dtype, tmp_path: Path) -> None:
    model = save_model(FAMILIES["llama"], tmp_path)
    edit(tmp_path, lambda tensors: tensors.update({name: tensor.to(stored) for name, tensor in tensors.items()}))
    spec = spec_of(AutoConfig.from_pretrained(tmp_path))
    own = load_weights(tmp_path, spec, dtype="auto", device=CPU)
    assert {tensor.dtype for tensor in flat(own)} == {stored}
    wanted = load_weights(tmp_path, spec, dtype=torch.bfloat16, device=CPU)
    assert torch.equal(wanted.embed, model.state_dict()[EMBED].to(stored).bfloat16())


def test_a_tied_head_is_the_embedding_stored_or_not(tmp_path: Path) -> None:
    save_model(FAMILIES["llama-tied"], tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    _, weights = load_lean(tmp_path)
    assert weights.head is weights.embed
    edit(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors[EMBED].clone()}))
    _, weights = load_lean(tmp_path)
    assert weights.head is weights.embed


def test_old_checkpoints_may_store_the_frequencies(tmp_path: Path) -> None:
    save_model(FAMILIES["llama"], tmp_path)
    edit(tmp_path, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    load_lean(tmp_path)


def test_the_bar_counts_all_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(FAMILIES["llama-tied"], tmp_path / "tiny-model")
    edit(tmp_path / "tiny-model", lambda tensors: tensors.update({HEAD: tensors[EMBED].clone()}))
    spec = spec_of(AutoConfig.from_pretrained(tmp_path / "tiny-model"))
    capsys.readouterr()
    load_weights(tmp_path / "tiny-model", spec, dtype="auto", device=CPU)
    assert capsys.readouterr().err == ""
    load_weights(tmp_path / "tiny-model", spec, dtype="auto", device=CPU, progress=True)
    bar = capsys.readouterr().err
    assert "tiny-model" in bar and "100%" in bar


def with_value(name: str, value: float) -> Callable[[Tensors], object]:
    return lambda tensors: tensors[name].view(-1)[-1:].fill_(value)


BAD: dict[str, tuple[str, Callable[[Tensors], object], str]] = {
    "missing": ("llama", lambda tensors: tensors.pop(K_PROJ), f"lacks 1 tensors, first {K_PROJ}"),
    "missing bias": ("qwen2", lambda tensors: tensors.pop(K_PROJ.replace("weight", "bias")), "k_proj.bias"),
    "missing norm": ("qwen3", lambda tensors: tensors.pop("model.layers.1.self_attn.q_norm.weight"), "q_norm"),
    "missing head": ("llama", lambda tensors: tensors.pop(HEAD), HEAD),
    "extra": ("llama", lambda tensors: tensors.update({"model.extra": torch.ones(2)}), "first model.extra"),
    "shape": ("llama", lambda tensors: tensors.update({K_PROJ: torch.ones(16, 31)}), r"k_proj.*\[16, 31\].*\[16, 32\]"),
    "transposed": ("llama", lambda tensors: tensors.update({DOWN: tensors[DOWN].t().contiguous()}), DOWN),
    "nan": ("llama", with_value(K_PROJ, float("nan")), f"{K_PROJ} holds NaN"),
    "infinite": ("llama", with_value(DOWN, float("inf")), f"{DOWN} holds NaN or"),
    "integers": ("llama", lambda tensors: tensors.update({DOWN: tensors[DOWN].to(torch.int8)}), "down_proj.* as I8"),
    "another tied head": (
        "llama-tied",
        lambda tensors: tensors.update({HEAD: tensors[EMBED] + 1}),
        "ties lm_head.weight",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_checkpoint_is_refused_by_the_name_of_the_tensor(case: str, tmp_path: Path) -> None:
    family, change, reason = BAD[case]
    save_model(FAMILIES[family], tmp_path)
    load_lean(tmp_path)
    edit(tmp_path, change)
    with pytest.raises(ModelLoadError, match=reason):
        load_lean(tmp_path)


def test_a_value_too_large_for_the_wanted_dtype_is_refused(tmp_path: Path) -> None:
    save_model(FAMILIES["llama"], tmp_path)
    edit(tmp_path, with_value(DOWN, 1e30))
    load_lean(tmp_path, torch.bfloat16)
    with pytest.raises(ModelLoadError, match=f"{DOWN} holds NaN or values that are infinite in float16"):
        load_lean(tmp_path, torch.float16)


def test_a_cut_file_and_pickles_are_refused(tmp_path: Path) -> None:
    save_model(FAMILIES["llama"], tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match=r"model\.safetensors: is corrupt or cut off"):
        load_lean(tmp_path)
    file.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="lean models read safetensors only"):
        load_lean(tmp_path)


def test_a_shard_that_is_not_there_is_refused(tmp_path: Path) -> None:
    save_model(FAMILIES["llama"], tmp_path, max_shard_size="10KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    (tmp_path / index["weight_map"][DOWN]).unlink()
    with pytest.raises(ModelLoadError, match=index["weight_map"][DOWN]):
        load_lean(tmp_path)
