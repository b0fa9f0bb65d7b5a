"""Which engine runs a model, and what is refused by name."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lean_models import FAMILIES, save_model
from recordable import RecordableSdpa
from safetensors.torch import load_file, save_file

from specedge.errors import ModelLoadError
from specedge.model import engines, memory
from specedge.model.attention.interface import AttentionUnavailable
from specedge.model.attention.sdpa import SdpaBackend
from specedge.model.batch import chain
from specedge.model.embedded import resolve_model
from specedge.model.engines import (
    EngineRefused,
    LeanCheckpoint,
    execution_of,
    graph_bytes_of,
    kv_bytes_of,
    load_for,
    make_runner,
)
from specedge.model.execution import Execution
from specedge.model.lean.row_bucket import ROW_BUCKETS
from specedge.model.lean.runner import LeanRunner
from specedge.model.lean.weights import load_weights
from specedge.model.native.runner import NativeRunner
from specedge.model.runner import TransformersRunner

DRAFT = resolve_model("demo", "draft")
CPU = torch.device("cpu")
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
has_library = pytest.mark.skipif(engines._native_library() is None, reason="no C compiler here")


@has_library
@pytest.mark.parametrize(
    ("engine", "dtype", "kind"),
    [
        ("auto", "auto", NativeRunner),
        ("auto", "float32", NativeRunner),
        ("auto", "bfloat16", NativeRunner),
        ("auto", "float16", LeanRunner),
        ("native", "auto", NativeRunner),
        ("lean", "auto", LeanRunner),
        ("transformers", "auto", TransformersRunner),
    ],
)
def test_the_setting_decides(engine, dtype, kind) -> None:
    model = load_for(engine, DRAFT, "cpu", dtype)
    runner = make_runner(model, 64)

    assert isinstance(runner, kind)
    assert model.device == runner.device == torch.device("cpu")
    assert runner.num_slots == 64
    assert runner.vocab_size == json.loads((Path(DRAFT) / "config.json").read_text())["vocab_size"]
    assert model.config.get_text_config().max_position_embeddings == 1024


@has_library
@pytest.mark.parametrize("engine", ["native", "lean", "transformers"])
def test_the_dtype_is_that_of_weights_keys_and_values(engine) -> None:
    whole, rounded = (make_runner(load_for(engine, DRAFT, "cpu", dtype), 64) for dtype in ("auto", "bfloat16"))
    assert rounded.cache.num_bytes * 2 == whole.cache.num_bytes
    assert rounded.cache.layer(0)[0].dtype is torch.bfloat16
    np.testing.assert_allclose(whole.forward(chain(32)), rounded.forward(chain(32)), atol=0.3)


@has_library
def test_engines_agree() -> None:
    logits = [
        make_runner(load_for(name, DRAFT, "cpu"), 64).forward(chain(32)) for name in ("native", "lean", "transformers")
    ]
    for other in logits[1:]:
        np.testing.assert_allclose(logits[0], other, atol=1e-3)


def test_without_a_library_auto_is_lean_and_native_is_refused(monkeypatch, caplog) -> None:
    monkeypatch.setattr(engines, "_native_library", lambda: None)

    model = load_for("auto", DRAFT, "cpu")
    assert isinstance(model, LeanCheckpoint) and model.library is None
    assert "there is no native library; see the log; engine lean is used" in caplog.text
    with pytest.raises(ModelLoadError, match="engine native cannot run it: there is no native library"):
        load_for("native", DRAFT, "cpu")


def copy_of_draft(folder: Path, change: Callable[[dict[str, torch.Tensor]], object] | None = None, **config) -> str:
    shutil.copytree(DRAFT, folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | config))
    if change is not None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_another_family_is_refused_by_name(tmp_path) -> None:
    folder = copy_of_draft(tmp_path / "other", model_type="gpt_neox")
    for engine in ("native", "lean"):
        with pytest.raises(
            EngineRefused, match=f"engine {engine} cannot run it: model_type gpt_neox has no lean model"
        ):
            load_for(engine, folder, "cpu")


def test_what_an_engine_does_not_do_is_refused() -> None:
    with pytest.raises(EngineRefused, match="models in float32 or bfloat16 on the CPU, not in float16 on cpu"):
        load_for("native", DRAFT, "cpu", "float16")
    with pytest.raises(EngineRefused, match="engine native has attention of its own: attention must be auto, not sdpa"):
        load_for("native", DRAFT, "cpu", attention="sdpa")
    with pytest.raises(EngineRefused, match="engine transformers takes attention auto or sdpa, not triton"):
        load_for("transformers", DRAFT, "cpu", attention="triton")
    for engine in ("auto", "lean"):
        with pytest.raises(AttentionUnavailable, match="'triton' needs a CUDA device, not cpu"):
            load_for(engine, DRAFT, "cpu", attention="triton")


def test_attention_sdpa_on_the_cpu_is_the_lean_engine() -> None:
    model = load_for("auto", DRAFT, "cpu", attention="sdpa", graph_bytes=2**30)
    assert isinstance(model, LeanCheckpoint) and model.library is None
    assert model.graph_bytes == 0, "nothing is recorded on the CPU"
    runner = make_runner(model, 64)
    assert execution_of(model, runner) == Execution("lean", "sdpa", "float32", "cpu")


@has_library
def test_the_choice_can_be_shown() -> None:
    for engine, dtype, expected in (
        ("native", "auto", Execution("native", "native", "float32", "cpu", "none")),
        ("lean", "bfloat16", Execution("lean", "sdpa", "bfloat16", "cpu", "none")),
        ("transformers", "bfloat16", Execution("transformers", "sdpa", "bfloat16", "cpu", "none")),
    ):
        model = load_for(engine, DRAFT, "cpu", dtype)
        runner = make_runner(model, 64)
        assert execution_of(model, runner) == expected
        spare = runner.cache.num_bytes - 64 * kv_bytes_of(model)
        assert spare == 0, "what sizing reckons with is what the cache takes"
    assert str(expected) == "engine transformers, attention sdpa, bfloat16 on cpu, graphs none"
    assert str(replace(expected, quantization="int8")).endswith("graphs none, quantization int8")


# Falling back from lean to transformers


@pytest.mark.parametrize(
    ("change", "config", "reason"),
    [
        (lambda tensors: tensors.update({"model.extra": torch.ones(2)}), {}, "1 tensors that its config.json does not"),
        (lambda tensors: tensors.update({HEAD: tensors[EMBED] + 1}), {}, "the checkpoint has another lm_head.weight"),
        (None, {"attention_bias": True}, "do not support attention_bias"),
    ],
)
def test_auto_says_why_it_is_transformers(tmp_path, caplog, monkeypatch, change, config, reason) -> None:
    asked = []
    monkeypatch.setattr(engines, "load_model", lambda *how, ranks: asked.append(how))
    folder = copy_of_draft(tmp_path / "model", change, **config)
    load_for("auto", folder, "cpu", "float16")
    assert asked == [(folder, "cpu", "float16")]
    assert reason in caplog.text and "engine transformers is used" in caplog.text
    with pytest.raises(EngineRefused, match=reason):
        load_for("lean", folder, "cpu")


def test_numbers_that_are_none_are_no_reason_to_fall_back(tmp_path) -> None:
    folder = copy_of_draft(tmp_path / "model", lambda tensors: tensors[EMBED].view(-1)[:1].fill_(float("nan")))
    for engine in ("auto", "lean"):
        with pytest.raises(ModelLoadError, match=f"tensor {EMBED} holds NaN"):
            load_for(engine, folder, "cpu")


# On CUDA


@pytest.fixture
def cuda(monkeypatch) -> torch.device:
    """A device that this machine need not have: weights stay on the CPU, and every kernel is the reference."""
    device = torch.device("cuda:0")
    monkeypatch.setattr(engines, "resolve_device", lambda name: device)
    monkeypatch.setattr(engines, "load_weights", lambda *args, **how: load_weights(*args, **how | {"device": CPU}))
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**40)
    return device


def test_auto_on_cuda_is_lean_with_the_best_backend_and_graphs(cuda, monkeypatch) -> None:
    chosen = []

    def choose(*how, **shape):
        chosen.append((*how, shape))
        return RecordableSdpa()

    monkeypatch.setattr(engines, "choose_backend", choose)
    model = load_for("auto", DRAFT, graph_bytes=2**30)
    assert isinstance(model, LeanCheckpoint)
    heads = {"num_heads": model.spec.num_heads, "num_kv_heads": model.spec.num_kv_heads}
    assert chosen == [(cuda, torch.bfloat16, model.spec.head_dim, "auto", heads)], "the checkpoint is in bfloat16"
    assert (model.dtype, model.graph_bytes, model.library) == (torch.bfloat16, 2**30, None)
    assert graph_bytes_of(model) == 2**30

    runner = make_runner(replace(model, device=CPU), 64)
    assert isinstance(runner, LeanRunner)
    assert runner.row_buckets == tuple(rows for rows in ROW_BUCKETS if rows <= 64)
    shown = execution_of(model, runner)
    assert shown == Execution("lean", "recordable", "bfloat16", "cuda:0", "to 64 rows")
    assert make_runner(replace(model, device=CPU, graph_bytes=0), 64).row_buckets == ()


def test_a_backend_that_cannot_be_recorded_gets_no_graphs(cuda, monkeypatch) -> None:
    monkeypatch.setattr(engines, "choose_backend", lambda *how, **shape: SdpaBackend())
    model = load_for("auto", DRAFT, graph_bytes=2**30)
    assert (model.graph_bytes, graph_bytes_of(model)) == (0, 0)


def test_the_kernels_head_dimension_is_refused_before_weights_are_read(cuda, monkeypatch, tmp_path) -> None:
    pytest.importorskip("triton", reason="needs triton: make test-kernels")
    monkeypatch.setattr(engines, "load_weights", lambda *args, **how: pytest.fail("weights were read"))
    folder = copy_of_draft(tmp_path / "model", head_dim=8)
    with pytest.raises(AttentionUnavailable, match="takes head dimensions from 16 to 256, not 8"):
        load_for("auto", folder, dtype="bfloat16", attention="triton")


# Memory


@pytest.mark.parametrize(("engine", "dtype"), [("lean", "bfloat16"), ("lean", "float32"), ("transformers", "float32")])
def test_weights_that_do_not_fit_are_refused_before_they_are_read(monkeypatch, engine, dtype) -> None:
    num_values = sum(tensor.numel() for tensor in load_file(Path(DRAFT) / "model.safetensors").values())
    needed = num_values * getattr(torch, dtype).itemsize
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed)
    load_for(engine, DRAFT, "cpu", dtype)
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed - 1)
    for name in ("load_weights", "load_model"):
        monkeypatch.setattr(engines, name, lambda *args, **how: pytest.fail("weights were read"))
    with pytest.raises(
        ModelLoadError, match=r"the weights need \d+ MiB, and cpu has \d+ MiB free: 1 MiB are short; take"
    ):
        load_for(engine, DRAFT, "cpu", dtype)


@has_library
def test_the_native_engine_needs_room_for_what_it_packs(monkeypatch) -> None:
    num_values = sum(tensor.numel() for tensor in load_file(Path(DRAFT) / "model.safetensors").values())
    monkeypatch.setattr(memory, "free_bytes", lambda device: 3 * num_values)
    with pytest.raises(ModelLoadError, match="the weights need"):
        load_for("native", DRAFT, "cpu")


# Models of the hub


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Callable[[str], str]:
    """Puts a folder's files into the hub's cache, and gives the id they are found by; the hub cannot be asked."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def add(folder: str) -> str:
        commit = "0" * 40
        model = tmp_path / "cache" / "models--specedge-tests--tiny"
        shutil.copytree(folder, model / "snapshots" / commit)
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text(commit)
        return "specedge-tests/tiny"

    return add


@has_library
def test_a_model_of_the_hub_is_found_in_its_cache(hub) -> None:
    model_id = hub(DRAFT)
    expected = make_runner(load_for("lean", DRAFT, "cpu"), 64).forward(chain(8))
    for engine, kind in (("auto", NativeRunner), ("native", NativeRunner), ("lean", LeanRunner)):
        runner = make_runner(load_for(engine, model_id, "cpu"), 64)
        assert isinstance(runner, kind)
        np.testing.assert_allclose(runner.forward(chain(8)), expected, atol=1e-3)


def test_shards_of_the_hub(hub, tmp_path) -> None:
    save_model(FAMILIES["qwen3"], tmp_path / "sharded", max_shard_size="10KB")
    model_id = hub(str(tmp_path / "sharded"))
    assert isinstance(make_runner(load_for("lean", model_id, "cpu"), 64), LeanRunner)
    next(iter((tmp_path / "cache").rglob("model-00002*"))).unlink()
    with pytest.raises(ModelLoadError, match=r"model-00002.* is missing"):
        load_for("lean", model_id, "cpu")


def test_a_model_of_the_hub_without_safetensors_is_transformers(hub, tmp_path, monkeypatch, caplog) -> None:
    folder = copy_of_draft(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    asked = []
    monkeypatch.setattr(engines, "load_model", lambda *how, ranks: asked.append(how))
    model_id = hub(folder)
    load_for("auto", model_id, "cpu", "bfloat16")
    assert asked == [(model_id, "cpu", "bfloat16")]
    assert "has no safetensors of it; engine transformers is used" in caplog.text
    with pytest.raises(EngineRefused, match="engine lean reads safetensors: specedge-tests/tiny: the Hugging Face hub"):
        load_for("lean", model_id, "cpu")


def test_what_the_hub_does_not_have_is_refused(hub) -> None:
    for engine in ("auto", "native", "lean"):
        with pytest.raises(
            ModelLoadError, match="specedge-tests/none: there is no such local folder, and as a Hugging"
        ):
            load_for(engine, "specedge-tests/none", "cpu")
