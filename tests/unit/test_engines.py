"""Which engine runs a model, and what is refused by name."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from specedge.errors import ModelLoadError
from specedge.model import engines
from specedge.model.batch import chain
from specedge.model.embedded import resolve_model
from specedge.model.engines import LeanCheckpoint, load_for, make_runner
from specedge.model.lean.runner import LeanRunner
from specedge.model.native.runner import NativeRunner
from specedge.model.runner import TransformersRunner

DRAFT = resolve_model("demo", "draft")
has_library = pytest.mark.skipif(engines._native_library() is None, reason="no C compiler here")


@has_library
@pytest.mark.parametrize(
    ("engine", "dtype", "kind"),
    [
        ("auto", "auto", NativeRunner),
        ("auto", "float32", NativeRunner),
        ("auto", "bfloat16", NativeRunner),
        ("auto", "float16", TransformersRunner),
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


def test_without_a_library_auto_falls_back_and_native_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(engines, "_native_library", lambda: None)

    assert not isinstance(load_for("auto", DRAFT, "cpu"), LeanCheckpoint)
    with pytest.raises(ModelLoadError, match="engine native cannot run it: there is no native library"):
        load_for("native", DRAFT, "cpu")


def test_another_family_runs_through_transformers_or_is_refused_by_name(tmp_path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(DRAFT, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt_neox"}))

    with pytest.raises(ModelLoadError, match="model_type gpt_neox has no lean model"):
        load_for("native", str(folder), "cpu")
    with pytest.raises(ModelLoadError, match="model_type gpt_neox has no lean model"):
        load_for("lean", str(folder), "cpu")


def test_what_an_engine_does_not_do_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="native runs models in float32 or bfloat16 on the CPU, not in float16"):
        load_for("native", DRAFT, "cpu", "float16")
    with pytest.raises(ModelLoadError, match="engine lean takes models in local folders"):
        load_for("lean", "Qwen/Qwen3-0.6B", "cpu")
