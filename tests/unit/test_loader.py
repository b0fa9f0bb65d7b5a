"""Model and tokenizer loading: what is accepted, and what each refusal names."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import LlamaConfig, LlamaForCausalLM, T5Config

from specedge.errors import ModelLoadError
from specedge.model.embedded import resolve_model
from specedge.model.loader import GenerationDefaults, load_generation_defaults, load_model, resolve_device
from specedge.tokenizer import load_tokenizer, tokenizer_fingerprint
from specedge.wire.messages import DefaultSampling

TARGET = Path(resolve_model("demo", "target"))
DRAFT = Path(resolve_model("demo", "draft"))


def load(folder: Path | str, dtype: str = "auto") -> LlamaForCausalLM:
    return load_model(str(folder), device="cpu", dtype=dtype, attention="sdpa")


def tiny_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )


@pytest.fixture(scope="module")
def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(5)
    return LlamaForCausalLM(tiny_config()).eval()


@pytest.fixture
def single_file(tmp_path: Path, tiny_model: LlamaForCausalLM) -> Path:
    tiny_model.save_pretrained(tmp_path / "single")
    return tmp_path / "single"


@pytest.fixture
def sharded(tmp_path: Path, tiny_model: LlamaForCausalLM) -> Path:
    tiny_model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    return tmp_path / "sharded"


@pytest.fixture
def copy_of_target(tmp_path: Path) -> Path:
    shutil.copytree(TARGET, tmp_path / "target")
    return tmp_path / "target"


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_embedded_pair_loads_for_inference() -> None:
    for folder in (TARGET, DRAFT):
        model = load(folder)
        assert model.dtype == torch.float32 and model.device.type == "cpu"
        assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert load(DRAFT, dtype="bfloat16").dtype == torch.bfloat16


def test_sharded_weights_are_the_weights_that_were_saved(sharded: Path, tiny_model: LlamaForCausalLM) -> None:
    token_ids = torch.arange(20)[None]
    loaded = load(sharded)
    assert torch.equal(loaded(token_ids).logits, tiny_model(token_ids).logits)


def test_attention_is_the_named_function() -> None:
    assert load(DRAFT).config._attn_implementation == "sdpa"


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def cut_in_half(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def drop_one_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "named", "reason"),
    [
        (remove("config.json"), "config.json", "is missing"),
        (write("config.json", b"{"), "config.json", "not readable JSON"),
        (write("config.json", b"[]"), "config.json", "no JSON object"),
        (write("config.json", b"{}"), "config.json", "no model_type"),
        (write("config.json", b'{"model_type": "unheard-of"}'), "", "unheard-of"),
        (remove("model.safetensors"), "", "has no weights"),
        (write("model.safetensors", b""), "model.safetensors", "cut off at 0 bytes"),
        (write("model.safetensors", b"\xff" * 1000), "model.safetensors", "corrupt"),
        (cut_in_half, "model.safetensors", "cut off"),
        (drop_one_tensor, "", "lacks 1 weights, first model.layers.1.mlp.up_proj.weight"),
        (lambda folder: edit_json(folder / "config.json", vocab_size=100), "", "[128, 32] instead of [100, 32]"),
        (lambda folder: edit_json(folder / "config.json", num_hidden_layers=4), "", "lacks 9 weights"),
        (lambda folder: edit_json(folder / "config.json", hidden_size="wide"), "", "hidden_size"),
    ],
)
def test_a_damaged_folder_is_refused_by_name(
    single_file: Path, damage: Callable[[Path], None], named: str, reason: str
) -> None:
    damage(single_file)
    with pytest.raises(ModelLoadError) as caught:
        load(single_file)
    assert str(single_file / named) in str(caught.value)
    assert reason in str(caught.value)


def test_a_damaged_shard_is_refused_by_name(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[2]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-8])
    with pytest.raises(ModelLoadError, match=shard.name):
        load(sharded)
    shard.unlink()
    with pytest.raises(ModelLoadError, match=f"{shard.name}: is missing"):
        load(sharded)
    shard.write_bytes(whole)
    (sharded / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="no weight_map"):
        load(sharded)


def test_a_shard_without_its_tensor_is_refused(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    with safe_open(shard, framework="pt") as opened:
        name = sorted(opened.keys())[0]
    tensors = load_file(shard)
    tensors["other"] = tensors.pop(name)
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=f"first {name}"):
        load(sharded)


def test_unused_weights_are_logged(single_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_json(single_file / "config.json", num_hidden_layers=2)
    with caplog.at_level(logging.WARNING, logger="specedge.model.loader"):
        load(single_file)
    assert "9 weights that its config.json does not use, first model.layers.2" in caplog.text


def test_a_missing_folder_is_refused_without_asking_the_hub(tmp_path: Path) -> None:
    for name in (str(tmp_path / "nothing"), "./nothing/here", "a/b/c"):
        with pytest.raises(ModelLoadError, match="no such folder"):
            load(name)
        with pytest.raises(ModelLoadError, match="no such folder"):
            load_tokenizer(name)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelLoadError, match="is a file"):
        load(tmp_path / "file")


def test_a_hub_id_goes_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for loader in (load, load_tokenizer, load_generation_defaults):
        with pytest.raises(ModelLoadError, match="specedge-tests/no-such-model") as caught:
            loader("specedge-tests/no-such-model")
        assert "hub" in str(caught.value).lower() or "offline" in str(caught.value).lower()


def test_an_encoder_decoder_is_refused(single_file: Path) -> None:
    T5Config(vocab_size=128, d_model=32).save_pretrained(single_file)
    with pytest.raises(ModelLoadError, match="encoder-decoder"):
        load(single_file)


def test_an_unknown_attention_function_is_refused(single_file: Path) -> None:
    with pytest.raises(ModelLoadError, match="no_such_attention"):
        load_model(str(single_file), device="cpu", attention="no_such_attention")


def test_a_device_this_machine_lacks_is_refused() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(ModelLoadError, match=f"this machine has {count} usable CUDA devices"):
        resolve_device(f"cuda:{count}")
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type == ("cuda" if count else "cpu")


def test_loading_prints_nothing(single_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edit_json(single_file / "config.json", num_hidden_layers=2)
    load(single_file)
    with pytest.raises(ModelLoadError):
        edit_json(single_file / "config.json", vocab_size=100)
        load(single_file)
    captured = capfd.readouterr()
    assert "LOAD REPORT" not in captured.err and "Loading weights" not in captured.err
    assert captured.out == ""


def test_generation_defaults_come_from_the_model(copy_of_target: Path, single_file: Path) -> None:
    own = DefaultSampling(temperature=0.7, top_p=0.9)
    assert load_generation_defaults(str(TARGET)) == GenerationDefaults(own, eos_ids=(2,))
    edit_json(copy_of_target / "generation_config.json", eos_token_id=[2, 0], top_k=20, repetition_penalty=1.1)
    assert load_generation_defaults(str(copy_of_target)) == GenerationDefaults(
        DefaultSampling(temperature=0.7, top_p=0.9, top_k=20, repetition_penalty=1.1), eos_ids=(0, 2)
    )
    (copy_of_target / "generation_config.json").unlink()
    assert load_generation_defaults(str(copy_of_target)) == GenerationDefaults(DefaultSampling(), eos_ids=(2,))
    edit_json(single_file / "config.json", eos_token_id=None)
    (single_file / "generation_config.json").unlink()
    tokenizer = load_tokenizer(str(TARGET))
    assert load_generation_defaults(str(single_file)).eos_ids == ()
    assert load_generation_defaults(str(single_file), tokenizer).eos_ids == (2,)


def test_a_broken_generation_config_is_refused(copy_of_target: Path) -> None:
    (copy_of_target / "generation_config.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"generation_config\.json"):
        load_generation_defaults(str(copy_of_target))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove("tokenizer.json"), "has no tokenizer"),
        (write("tokenizer.json", b"{"), "tokenizer.json: is not readable JSON"),
        (write("tokenizer.json", b"{}"), "tokenizer cannot be loaded"),
        (write("tokenizer_config.json", b"{"), "tokenizer_config.json: is not readable JSON"),
    ],
)
def test_a_damaged_tokenizer_is_refused(copy_of_target: Path, damage: Callable[[Path], None], reason: str) -> None:
    damage(copy_of_target)
    with pytest.raises(ModelLoadError) as caught:
        load_tokenizer(str(copy_of_target))
    assert str(copy_of_target) in str(caught.value) and reason in str(caught.value)


def test_the_fingerprint_is_of_the_tokens_alone(copy_of_target: Path) -> None:
    fingerprint = tokenizer_fingerprint(load_tokenizer(str(TARGET)))
    assert len(fingerprint) == 32 and int(fingerprint, 16) >= 0
    assert tokenizer_fingerprint(load_tokenizer(str(DRAFT))) == fingerprint
    (copy_of_target / "chat_template.jinja").write_text("another template")
    edit_json(copy_of_target / "tokenizer_config.json", model_max_length=5)
    assert tokenizer_fingerprint(load_tokenizer(str(copy_of_target))) == fingerprint


def swap_two_tokens(content: dict[str, dict[str, dict[str, int]]]) -> None:
    vocabulary = content["model"]["vocab"]
    first, second = [token for token in vocabulary if vocabulary[token] in (500, 501)]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def drop_last_merge(content: dict[str, dict[str, list[str]]]) -> None:
    content["model"]["merges"].pop()


@pytest.mark.parametrize("change", [swap_two_tokens, drop_last_merge])
def test_the_fingerprint_sees_any_change_of_tokens(copy_of_target: Path, change: Callable[[object], None]) -> None:
    content = json.loads((copy_of_target / "tokenizer.json").read_text())
    change(content)
    (copy_of_target / "tokenizer.json").write_text(json.dumps(content))
    original = tokenizer_fingerprint(load_tokenizer(str(TARGET)))
    assert tokenizer_fingerprint(load_tokenizer(str(copy_of_target))) != original


def test_the_fingerprint_sees_added_tokens() -> None:
    tokenizer = load_tokenizer(str(TARGET))
    original = tokenizer_fingerprint(tokenizer)
    tokenizer.add_tokens([AddedToken("<|extra|>")])
    assert tokenizer_fingerprint(tokenizer) != original


def test_demo_is_the_embedded_pair_and_other_names_stay() -> None:
    assert TARGET.name == "target" and DRAFT.name == "draft"
    assert resolve_model("org/model", "target") == "org/model"
    assert resolve_model("/a/demo", "draft") == "/a/demo"
    assert resolve_model("~/model", "draft") == str(Path.home() / "model")
