"""What cannot be served is refused when `specedge verifier` starts: exit code 1 and one line that says what to do."""

import json
import os
from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from specedge.model import engines
from specedge.model.embedded import resolve_model
from specedge_cli.main import main

TARGET = Path(resolve_model("demo", "target"))
EMBED, HEAD, DOWN = "model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.down_proj.weight"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("SPECEDGE_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def model(folder: Path, change: Callable[[Tensors], object] | None = None, **config: object) -> str:
    """The embedded target with some of its weights or of its configuration changed."""
    folder.mkdir()
    for file in TARGET.iterdir():
        (folder / file.name).symlink_to(file)
    edit_json(folder / "config.json", config)
    if change is not None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        (folder / "model.safetensors").unlink()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def edit_json(path: Path, changes: dict[str, object]) -> None:
    content = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps(content | changes))


def refusal(capfd: pytest.CaptureFixture[str], *flags: str) -> str:
    """What the command says, after checking that it ends with it as it should."""
    assert main(["verifier", "--port", "0", "--metrics-port", "off", "--device", "cpu", *flags]) == 1
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    lines = [line for line in printed.splitlines() if line.startswith("specedge verifier: ")]
    assert len(lines) == 1 and printed.endswith(lines[0] + "\n")
    return lines[0].removeprefix("specedge verifier: ")


def nan(tensors: Tensors) -> None:
    tensors[DOWN].view(-1)[-1:].fill_(float("nan"))


@pytest.mark.parametrize("engine", ["native", "lean"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensors: tensors.pop(DOWN), f"lacks 1 tensors, first {DOWN}"),
        (lambda tensors: tensors.update({"model.extra": torch.ones(2)}), "1 tensors that its config.json does not use"),
        (lambda tensors: tensors.update({DOWN: torch.ones(2, 3)}), f"tensor {DOWN} has shape [2, 3], config.json asks"),
        (lambda tensors: tensors.update({DOWN: tensors[DOWN].to(torch.int8)}), f"tensor {DOWN} is stored as I8; lean"),
        (lambda tensors: tensors.update({HEAD: tensors[EMBED] + 1}), "the checkpoint has another lm_head.weight"),
        (nan, f"tensor {DOWN} holds NaN or values that are infinite"),
    ],
    ids=["missing", "extra", "shape", "integers", "another head", "nan"],
)
def test_bad_tensors(
    engine: str, change: Callable[[Tensors], object], reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if engine == "native" and engines._native_library() is None:
        pytest.skip("no C compiler here")
    folder = model(tmp_path / "model", change)
    said = refusal(capfd, "--target-model", folder, "--engine", engine)
    assert folder in said and reason in said


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensors: tensors.pop(DOWN), f"lacks 1 weights, first {DOWN}"),
        (lambda tensors: tensors.update({DOWN: torch.ones(2, 3)}), f"first {DOWN}: [2, 3] instead of"),
        (nan, f"tensor {DOWN} holds NaN"),
    ],
    ids=["missing", "shape", "nan"],
)
def test_bad_tensors_that_no_engine_takes(
    change: Callable[[Tensors], object], reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = model(tmp_path / "model", change)
    said = refusal(capfd, "--target-model", folder)
    assert folder in said and reason in said


UNKNOWN_ROPE = {"rope_parameters": {"rope_type": "spiral", "rope_theta": 10_000.0}}


@pytest.mark.parametrize(
    ("config", "engine", "reason"),
    [
        (
            UNKNOWN_ROPE,
            "lean",
            "engine lean cannot run it: rope type spiral is unknown; lean models know default, linear",
        ),
        (UNKNOWN_ROPE, "auto", "transformers does not know 'spiral'"),
        ({"hidden_act": "tangle"}, "lean", "lean qwen3 models compute hidden_act silu only, not tangle"),
        ({"hidden_act": "tangle"}, "transformers", "transformers does not know 'tangle'"),
        ({"model_type": "unheard-of"}, "auto", "model type `unheard-of`"),
        ({"model_type": "unheard-of"}, "lean", "model type `unheard-of`"),
        ({"hidden_size": "wide"}, "auto", "hidden_size"),
        ({"num_key_value_heads": 5}, "lean", "num_attention_heads 3 is no multiple of num_key_value_heads 5"),
    ],
)
def test_bad_configurations(
    config: dict[str, object], engine: str, reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = model(tmp_path / "model", **config)
    said = refusal(capfd, "--target-model", folder, "--engine", engine)
    assert folder in said and reason in said


def test_another_family_with_an_engine_that_does_not_know_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = model(tmp_path / "model", model_type="gpt_neox")
    for engine in ("lean", "native"):
        said = refusal(capfd, "--target-model", folder, "--engine", engine)
        assert f"engine {engine} cannot run it: model_type gpt_neox has no lean model; there is one for llama" in said


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--engine transformers --attention triton", "engine transformers takes attention auto or sdpa, not triton"),
        (
            "--engine native --attention sdpa",
            "engine native has attention of its own: attention must be auto, not sdpa",
        ),
        ("--engine native --dtype float16", "on the CPU, not in float16 on cpu"),
        ("--attention triton", "attention backend 'triton' needs a CUDA device, not cpu"),
        ("--engine lean --attention flash", "attention backend 'flash'"),
        ("--device cuda:99", "device cuda:99: this machine has"),
        ("--target-model specedge-tests/none --engine lean", "specedge-tests/none"),
        ("--target-model specedge-tests/none", "specedge-tests/none"),
    ],
)
def test_settings_that_do_not_go_together(flags: str, reason: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert reason in refusal(capfd, *flags.split())


def test_a_head_dimension_that_the_kernel_does_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("triton", reason="needs triton: make test-kernels")
    # It is found before the device is used, which this machine need not have.
    monkeypatch.setattr(engines, "resolve_device", lambda name: torch.device("cuda:0"))
    said = refusal(capfd, "--target-model", model(tmp_path / "model", head_dim=300), "--attention", "triton")
    assert said == "attention backend 'triton' takes head dimensions from 16 to 256, not 300"


# Memory


def test_weights_beyond_the_machines_memory(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A file with holes, of 4 TB: it could not be read in this test's time, let alone be held."""
    folder = model(tmp_path / "model")
    shape = [2**20, 2**21]
    tensors = {EMBED: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 2 * prod(shape)]}}
    header = json.dumps(tensors).encode()
    (tmp_path / "model" / "model.safetensors").unlink()
    with (tmp_path / "model" / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * prod(shape))
    for engine in ("lean", "transformers"):
        said = refusal(capfd, "--target-model", folder, "--engine", engine)
        assert f"{folder}: the weights need 8,388,608 MiB, and cpu has" in said
        assert "MiB are short; take a smaller dtype, another device or a smaller model" in said


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("", "KV blocks for one session of max_len 1000000000000 need"),
        ("--max-len 100 --num-kv-blocks 2147483647", "num_kv_blocks 2147483647 of 16 tokens need"),
    ],
)
def test_a_pool_beyond_the_machines_memory(
    flags: str, reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = model(tmp_path / "model", max_position_embeddings=10**12)
    said = refusal(capfd, "--target-model", folder, *flags.split())
    assert said.startswith(reason) and "MiB are short; lower " in said


def test_draft_slots_beyond_the_machines_memory(capfd: pytest.CaptureFixture[str]) -> None:
    said = refusal(capfd, "--system", "server-only", "--num-draft-slots", "2147483647")
    assert "num_draft_slots), and beside the weights cpu has" in said
    assert "MiB are short; lower max_len or num_draft_slots, raise kv_memory_fraction" in said
    assert main(["edge", "--port", "0", "--device", "cpu", "--num-draft-slots", "2147483647"]) == 1
    assert "num_draft_slots 2147483647 and graph_memory_mib of the draft model need" in capfd.readouterr().err
