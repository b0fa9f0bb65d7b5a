"""Quantised draft models: their logits, what is refused by name, and that no text depends on them."""

import asyncio
import json
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_draft import TrieKeeper
from lean_models import FAMILIES, VOCAB_SIZE, save_model
from packed_batches import NUM_SLOTS, mixed_batches
from transformers import AutoModelForCausalLM, TorchAoConfig

from edge_agent.drafter import Drafter
from specedge.drafting.draft_session import DraftingSettings
from specedge.drafting.growth import GrowthSettings
from specedge.drafting.loading import draft_runner, load_draft_model
from specedge.drafting.settings import DrafterSettings
from specedge.errors import ModelLoadError
from specedge.model.embedded import resolve_model
from specedge.model.engines import LeanCheckpoint, load_for, make_runner
from specedge.model.lean.products import add_product, product
from specedge.model.quantization import _int4, quantize_lean, quantize_modules
from specedge.sampling import SamplingParams
from specedge.tokenizer import load_tokenizer, tokenizer_fingerprint
from specedge.wire.messages import OpenSession, Verdict
from specedge_verifier.draft_depth import DraftDepth
from specedge_verifier.loading import load as load_verifier
from specedge_verifier.settings import VerifierSettings

TARGET = resolve_model("demo", "target")
LARGEST = {"int8": 0.05, "int4": 0.6}  # mean difference of logits, in their standard deviations


def loaded(folder: Path | str, engine: Any, quantization: Any, dtype: str = "float32") -> Any:
    model = load_for(engine, str(folder), "cpu", dtype)
    if quantization == "none":
        return model
    if isinstance(model, LeanCheckpoint):
        quantize_lean(model.weights, quantization)
    else:
        quantize_modules(model, quantization)
    return model


def logits_of(model: Any) -> torch.Tensor:
    runner = make_runner(model, NUM_SLOTS)
    return torch.cat([runner.forward(batch) for batch in mixed_batches(VOCAB_SIZE)])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("family", ["llama-tied", "qwen2", "qwen3-sliding"])
def test_logits_are_near_the_unquantised_and_the_same_with_both_engines(
    family: str, quantization: str, dtype: str, tmp_path: Path
) -> None:
    save_model(FAMILIES[family], tmp_path)
    exact = logits_of(loaded(tmp_path, "lean", "none"))
    lean, transformers = (logits_of(loaded(tmp_path, name, quantization, dtype)) for name in ("lean", "transformers"))
    difference = (lean - exact).abs().mean() / exact.std()
    assert 1e-3 < difference < LARGEST[quantization]
    if dtype == "float32":
        torch.testing.assert_close(lean, transformers, atol=2e-4, rtol=2e-4)


def test_all_matrices_but_embedding_and_head_are_quantised(tmp_path: Path) -> None:
    save_model(FAMILIES["qwen2"], tmp_path)
    lean = loaded(tmp_path, "lean", "int8").weights
    layer = lean.layers[0]
    assert all(type(each) is not torch.Tensor for each in (layer.qkv, layer.o, layer.gate_up, layer.down))
    kept = (lean.embed, lean.head, lean.final_norm, layer.qkv_bias, layer.input_norm)
    assert all(type(each) is torch.Tensor for each in kept)
    theirs = loaded(tmp_path, "transformers", "int8")
    names = [name for name, each in theirs.named_parameters() if type(each.data) is not torch.Tensor]
    assert len(names) == 3 * 7 and all(".layers." in name for name in names)


def test_products_with_quantised_weights_go_where_those_with_others_do(tmp_path: Path) -> None:
    save_model(FAMILIES["qwen2"], tmp_path)
    exact, rounded = (loaded(tmp_path, "lean", each).weights.layers[0] for each in ("none", "int8"))
    x, residual = torch.randn(5, 32), torch.randn(5, 32)
    expected = product(x, exact.qkv, exact.qkv_bias)
    torch.testing.assert_close(product(x, rounded.qkv, rounded.qkv_bias), expected, atol=0.1, rtol=0)
    attended = torch.randn(5, 32)
    sums = residual.clone(), residual.clone()
    for each, layer in zip(sums, (exact, rounded), strict=True):
        add_product(each, attended, layer.o)
    torch.testing.assert_close(*sums, atol=0.1, rtol=0)
    assert not torch.equal(*sums) and not torch.equal(sums[0], residual)


def test_a_matrix_whose_inputs_make_no_groups_stays_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_model(FAMILIES["llama"], tmp_path)  # 48 inputs of `down`
    with caplog.at_level("INFO"):
        layer = loaded(tmp_path, "lean", "int4").weights.layers[0]
    assert type(layer.down) is torch.Tensor and type(layer.gate_up) is not torch.Tensor
    assert "quantised 9 of 12 matrices to int4" in caplog.text


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_largest_group_that_divides_the_inputs_is_taken(device: str) -> None:
    config_for = _int4(torch.device(device))
    assert [config_for(num_inputs).group_size for num_inputs in (2048, 192, 96)] == [128, 64, 32]
    assert config_for(48) is None


def test_the_four_bit_format_on_cuda_is_the_one_whose_kernel_torch_has() -> None:
    """The others need packages that ordinary users do not have (mslk) or other devices."""
    assert _int4(torch.device("cuda"))(2048).int4_packing_format.value == "tile_packed_to_4d"
    assert hasattr(torch.ops.aten, "_weight_int4pack_mm") and hasattr(torch.ops.aten, "_convert_weight_to_int4pack")


def test_a_model_without_such_matrices_is_refused(tmp_path: Path) -> None:
    config = FAMILIES["llama"].to_dict() | {"hidden_size": 48, "head_dim": 12}
    save_model(type(FAMILIES["llama"])(**config), tmp_path)
    with pytest.raises(ModelLoadError, match=r"none of the draft model's 12 matrices .* multiple of 32"):
        loaded(tmp_path, "lean", "int4")


def test_without_torchao_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(FAMILIES["llama"], tmp_path)
    model = load_for("lean", str(tmp_path), "cpu")
    assert isinstance(model, LeanCheckpoint)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ModelLoadError, match=r"draft_quantization int4 needs torchao .*specedge\[quantized\]"):
        quantize_lean(model.weights, "int4")


@pytest.mark.parametrize(("engine", "kind"), [("auto", "lean"), ("lean", "lean"), ("transformers", "transformers")])
def test_the_engine_computes_with_torch(engine: Any, kind: str) -> None:
    settings = DrafterSettings(device="cpu", engine=engine, draft_quantization="int8")
    model = load_draft_model(settings, load_tokenizer(TARGET))
    assert isinstance(model, LeanCheckpoint) == (kind == "lean")
    assert not isinstance(model, LeanCheckpoint) or model.library is None


@pytest.mark.parametrize(
    ("quantization", "dtype", "expected"),
    [("int8", "auto", "float32"), ("int4", "auto", "bfloat16"), ("int4", "float32", "float32")],
)
def test_dtype_auto_is_what_the_kernels_compute_in(quantization: Any, dtype: Any, expected: str) -> None:
    settings = DrafterSettings(device="cpu", dtype=dtype, draft_quantization=quantization)
    assert load_draft_model(settings, load_tokenizer(TARGET)).dtype == getattr(torch, expected)


def test_the_native_engine_is_refused() -> None:
    settings = DrafterSettings(device="cpu", engine="native", draft_quantization="int8")
    with pytest.raises(ModelLoadError, match="engine native takes unquantised weights only"):
        load_draft_model(settings, load_tokenizer(TARGET))


def quantised_checkpoint(folder: Path) -> None:
    plain = folder / "plain"
    save_model(FAMILIES["qwen3"], plain)
    from torchao.quantization import Int8WeightOnlyConfig

    own = TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
    AutoModelForCausalLM.from_pretrained(plain, quantization_config=own).save_pretrained(folder / "own")


def test_a_checkpoints_own_format_goes_through_transformers(tmp_path: Path) -> None:
    quantised_checkpoint(tmp_path)
    exact = logits_of(load_for("lean", str(tmp_path / "plain"), "cpu"))
    model = load_for("auto", str(tmp_path / "own"), "cpu")
    assert not isinstance(model, LeanCheckpoint)
    assert 1e-3 < (logits_of(model) - exact).abs().mean() / exact.std() < LARGEST["int8"]
    with pytest.raises(ModelLoadError, match="lean qwen3 models do not support quantization_config"):
        load_for("lean", str(tmp_path / "own"), "cpu")
    with pytest.raises(ModelLoadError, match=r"quantised already .*draft_quantization must be none"):
        quantize_modules(model, "int8")


@pytest.mark.parametrize(
    ("method", "package"),
    [("gptq", "optimum"), ("awq", "gptqmodel"), ("compressed-tensors", "compressed-tensors")],
)
def test_a_format_whose_package_is_missing_names_it(method: str, package: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(resolve_model("demo", "draft"), folder)
    config = json.loads((folder / "config.json").read_text())
    own = {"quant_method": method, "bits": 4, "group_size": 32, "config_groups": {}}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": own}))
    with pytest.raises(ModelLoadError, match=rf"{folder}: .*pip install {package}"):
        load_for("auto", str(folder), "cpu")


PROMPTS = ("Tell me a tale about a fox.", "Write a story about a duck who was afraid of water.", "Who is Rose?")
SAMPLINGS = [SamplingParams(temperature=each, seed=77, max_tokens=30, ignore_eos=True) for each in (0.0, 0.7, 1.0)]


def prompt_ids(text: str) -> tuple[int, ...]:
    tokenizer = load_tokenizer(TARGET)
    messages = [{"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tuple(tokenizer(rendered)["input_ids"])


@cache
def answers_and_accepted(system: Any, quantization: Any) -> tuple[list[tuple[int, ...]], int]:
    """The embedded target's answers, its drafts made beside it, and how many drafted tokens it accepted."""
    settings = VerifierSettings(
        device="cpu", engine="lean", system=system, draft_quantization=quantization, num_kv_blocks=100, max_batch_size=4
    )
    core = load_verifier(settings).core
    fingerprint = tokenizer_fingerprint(load_tokenizer(TARGET))
    for handle, (prompt, sampling) in enumerate(zip(PROMPTS, SAMPLINGS, strict=True)):
        core.open(handle, OpenSession(str(handle), prompt_ids(prompt), (), sampling, fingerprint))
    answers: list[tuple[int, ...]] = [()] * len(PROMPTS)
    num_accepted = 0
    while core.num_sessions:
        for handle, message in core.step().events:
            if isinstance(message, Verdict):
                answers[handle] += message.token_ids
                num_accepted += message.num_accepted
    assert all(len(answer) == 30 for answer in answers)
    return answers, num_accepted


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_no_text_depends_on_quantisation(quantization: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # However slow quantised draft steps are on this machine, they are taken.
    monkeypatch.setattr(DraftDepth, "decide", lambda depth, num_sessions, _: min(num_sessions, 1) * depth.max_depth)
    plain, _ = answers_and_accepted("autoregressive", "none")
    answers, num_accepted = answers_and_accepted("server-only", quantization)
    assert answers == plain
    assert num_accepted > 0


async def tokens_per_verdict(quantization: Any) -> float:
    """Mean over all prompts, when whole trees are verified each time they have grown."""
    settings = DrafterSettings(device="cpu", engine="lean", draft_quantization=quantization)
    drafting = DraftingSettings(mode="off", growth=GrowthSettings(max_n_beams=16, max_budget=16))
    runner, drafting = draft_runner(load_draft_model(settings, load_tokenizer(TARGET)), drafting, 1024)
    drafter = Drafter(runner, drafter_id="draft", settings=drafting)
    answers, _ = answers_and_accepted("autoregressive", "none")
    num_verdicts = 0
    for prompt, sampling, answer in zip(PROMPTS, SAMPLINGS, answers, strict=True):
        keeper, num_tokens = TrieKeeper(drafter, prompt_ids(prompt), sampling), 0
        while num_tokens < len(answer) - 1:
            while drafter.step():
                pass
            await asyncio.sleep(0)
            verdict = keeper.walk(answer[num_tokens:])
            keeper.commit(verdict)
            num_tokens += len(verdict)
            num_verdicts += 1
        keeper.handle.close()
        drafter.step()
    return sum(map(len, answers)) / num_verdicts


async def test_acceptance_stays_near_that_of_the_unquantised_draft() -> None:
    means = {quantization: await tokens_per_verdict(quantization) for quantization in ("none", "int8", "int4")}
    assert means["none"] > 2
    assert means["int8"] > 0.95 * means["none"]
    assert means["int4"] > 0.75 * means["none"]
