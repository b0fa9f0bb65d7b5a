"""A lean model computes what transformers computes, whatever the family and the batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lean_models import FAMILIES, VOCAB_SIZE, load_lean, save_model
from packed_batches import NUM_SLOTS, mixed_batches

from specedge.model.attention.sdpa import SdpaBackend
from specedge.model.batch import PackedBatch, Segment
from specedge.model.embedded import resolve_model
from specedge.model.lean.runner import LeanRunner
from specedge.model.loader import load_model
from specedge.model.runner import ModelRunner, TransformersRunner


def outputs(runner: ModelRunner | LeanRunner, batches: list[PackedBatch]) -> torch.Tensor:
    """Logits of all wanted rows of all batches, in order."""
    return torch.cat([runner.forward(batch) for batch in batches])


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_transformers(family: str, tmp_path: Path) -> None:
    save_model(FAMILIES[family], tmp_path)
    batches = mixed_batches(VOCAB_SIZE)
    expected = outputs(TransformersRunner(load_model(str(tmp_path), "cpu", "float32"), NUM_SLOTS), batches)
    logits = outputs(LeanRunner(*load_lean(tmp_path), NUM_SLOTS), batches)
    assert logits.dtype == torch.float32 and expected.std() > 0.5
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "qwen2-sliding", "qwen3", "mistral-sliding"])
def test_low_precision_is_as_near_to_exact_as_transformers(family: str, dtype: str, tmp_path: Path) -> None:
    save_model(FAMILIES[family], tmp_path)
    batches = mixed_batches(VOCAB_SIZE)
    reference = TransformersRunner(load_model(str(tmp_path), "cpu", "float32"), NUM_SLOTS)
    exact = outputs(reference, batches)
    theirs = outputs(TransformersRunner(load_model(str(tmp_path), "cpu", dtype), NUM_SLOTS), batches)
    ours = outputs(LeanRunner(*load_lean(tmp_path, getattr(torch, dtype)), NUM_SLOTS), batches)
    assert 0 < (ours - exact).abs().mean() <= 1.2 * (theirs - exact).abs().mean()
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max()


def test_low_precision_logits_are_not_rounded(tmp_path: Path) -> None:
    save_model(FAMILIES["qwen3"], tmp_path)
    logits = outputs(LeanRunner(*load_lean(tmp_path, torch.bfloat16), NUM_SLOTS), mixed_batches(VOCAB_SIZE))
    assert (logits != logits.bfloat16().float()).float().mean() > 0.9


@pytest.mark.parametrize("role", ["target", "draft"])
def test_the_embedded_pair_equals_transformers(role: str) -> None:
    folder = Path(resolve_model("demo", role))
    theirs = TransformersRunner(load_model(str(folder), "cpu"), 512)
    ours = LeanRunner(*load_lean(folder), 512)
    rng = np.random.default_rng(3)
    rows = np.arange(300)
    prompt = PackedBatch(rng.integers(3, 4096, 300), rows, rows, (Segment(300, rows),), rows[-1:])
    batches = [prompt, *mixed_batches(ours.vocab_size)]
    torch.testing.assert_close(outputs(ours, batches), outputs(theirs, batches), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_attention_backends_behind_the_lean_models_equal_the_reference(family: str, tmp_path: Path) -> None:
    save_model(FAMILIES[family], tmp_path)
    batches = mixed_batches(VOCAB_SIZE)
    reference = LeanRunner(*load_lean(tmp_path), NUM_SLOTS)
    backend = LeanRunner(*load_lean(tmp_path), NUM_SLOTS, backend=SdpaBackend())
    torch.testing.assert_close(outputs(backend, batches), outputs(reference, batches), atol=1e-5, rtol=1e-5)


def test_no_row_wanted_still_stores_keys_and_values(tmp_path: Path) -> None:
    save_model(FAMILIES["qwen3"], tmp_path)
    runner = LeanRunner(*load_lean(tmp_path), NUM_SLOTS)
    rows = np.arange(6)
    tokens = np.array([3, 1, 4, 1, 5, 9])
    whole = runner.forward(PackedBatch(tokens, rows, rows, (Segment(6, rows),), rows[5:]))
    slots = rows + 40
    assert runner.forward(PackedBatch(tokens[:5], rows[:5], slots[:5], (Segment(5, slots[:5]),), rows[:0])).shape == (
        0,
        VOCAB_SIZE,
    )
    last = PackedBatch(tokens[5:], rows[5:], slots[5:], (Segment(1, slots),), rows[:1])
    torch.testing.assert_close(runner.forward(last), whole, atol=1e-5, rtol=1e-5)


def test_moved_kv_serves_the_next_step(tmp_path: Path) -> None:
    save_model(FAMILIES["mistral-sliding"], tmp_path)
    runner = LeanRunner(*load_lean(tmp_path), NUM_SLOTS)
    rows, tokens = np.arange(8), np.arange(20, 28)
    expected = runner.forward(PackedBatch(tokens, rows, rows, (Segment(8, rows),), rows[7:]))
    scattered = np.array([0, 1, 2, 3, 60, 50, 55])
    runner.copy_kv(np.full(8, 100), rows)
    runner.forward(PackedBatch(tokens[:7], rows[:7], scattered, (Segment(7, scattered),), rows[:0]))
    runner.copy_kv(scattered[4:], rows[4:7])
    last = PackedBatch(tokens[7:], rows[7:], rows[7:], (Segment(1, rows),), rows[:1])
    torch.testing.assert_close(runner.forward(last), expected, atol=1e-5, rtol=1e-5)
