"""The native engine against transformers, for each family and the embedded pair, and what it refuses."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from native_support import (
    NUM_SLOTS,
    embedded_weights,
    library,
    needs_compiler,
    plain_decoding,
    prefill,
    runner_of,
    sessions,
    tree_batch,
)
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from specedge.errors import ModelLoadError
from specedge.model.batch import PackedBatch, Segment, chain
from specedge.model.embedded import resolve_model
from specedge.model.lean.spec import spec_of
from specedge.model.lean.weights import load_weights
from specedge.model.loader import load_model
from specedge.model.native import self_test
from specedge.model.native.engine import INSTRUCTION_SETS, BatchRefused
from specedge.model.native.runner import NativeRunner
from specedge.model.runner import TransformersRunner
from specedge.model.transformers_attention import ATTENTION_NAME

pytestmark = needs_compiler
TOLERANCE = 1e-4
SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
LONG = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FAMILIES: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "llama-scaled-rope": lambda: LlamaForCausalLM(
        LlamaConfig(**SHAPE, head_dim=64, rope_parameters={**LONG, "original_max_position_embeddings": 64})
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen2-sliding": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=6, max_window_layers=1)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16)),
    "qwen3-wide-heads": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=128)),
    "mistral-sliding": lambda: MistralForCausalLM(MistralConfig(**SHAPE, head_dim=20, sliding_window=5)),
    "mistral-wide-window": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=270)),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("limit", INSTRUCTION_SETS)
def test_equals_transformers(family: str, limit: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.normal_(1.0, 0.2)
    model.save_pretrained(tmp_path)
    spec = spec_of(model.config)
    weights = load_weights(tmp_path, spec, dtype=torch.float32, device=torch.device("cpu"))
    model.set_attn_implementation(ATTENTION_NAME)
    items = sessions(Random(0), 97, [(0, 4), (9, 7), (301, 5)])
    oracle = TransformersRunner(model, NUM_SLOTS)
    runner = NativeRunner(library(), spec, weights, NUM_SLOTS, num_threads=2, limit=limit)
    logits = []
    for each in (oracle, runner):
        for item in items:
            prefill(each, item, 150)
        logits.append(each.forward(tree_batch(items)))
    assert float(logits[0].std()) > 0.1
    torch.testing.assert_close(logits[1], logits[0], atol=TOLERANCE, rtol=TOLERANCE)
    assert runner.forward(tree_batch(items)).equal(torch.cat([plain_decoding(runner, item) for item in items]))


@pytest.mark.parametrize("role", ["target", "draft"])
def test_embedded_pair_equals_transformers(role: Any) -> None:
    oracle = TransformersRunner(load_model(resolve_model("demo", role), "cpu", "float32"), NUM_SLOTS)
    runner = runner_of(role)
    items = sessions(Random(1), 4096, [(0, 4), (120, 32), (510, 8)])
    logits = []
    for each in (oracle, runner):
        for item in items:
            prefill(each, item, 150)
        logits.append(each.forward(tree_batch(items)))
    assert (runner.vocab_size, runner.num_slots, runner.device) == (4096, NUM_SLOTS, oracle.device)
    torch.testing.assert_close(logits[1], logits[0], atol=TOLERANCE, rtol=TOLERANCE)


def test_only_wanted_rows_have_logits_in_their_order() -> None:
    runner = runner_of("target")
    every = runner.forward(chain(20))
    wanted = np.array([19, 3, 3, 0])
    batch = chain(20)
    assert runner.forward(dataclasses.replace(batch, logits_rows=wanted)).equal(every[wanted])
    assert runner.forward(dataclasses.replace(batch, logits_rows=wanted[:0])).shape == (0, 4096)
    assert runner.forward(dataclasses.replace(batch, logits_rows=np.zeros(50, dtype=np.int64))).equal(
        every[:1].expand(50, -1)
    )


def test_bfloat16_norms_and_biases_are_read_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = FAMILIES["qwen2"]().eval()
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    spec = spec_of(model.config)
    stored = load_weights(tmp_path, spec, dtype="auto", device=torch.device("cpu"))
    wide = load_weights(tmp_path, spec, dtype=torch.float32, device=torch.device("cpu"))
    half = load_weights(tmp_path, spec, dtype=torch.float16, device=torch.device("cpu"))
    logits = [NativeRunner(library(), spec, some, 64) for some in (stored, wide, half)]
    found = [runner.forward(chain(9)) for runner in logits]
    assert found[1].equal(found[0])
    torch.testing.assert_close(found[2], found[0], atol=1e-2, rtol=1e-2)


CHAIN = np.arange(4)
BATCH = PackedBatch(CHAIN, CHAIN, CHAIN, (Segment(4, CHAIN),), CHAIN)
TREE = np.tri(4, dtype=np.bool_)


def with_segment(**changes: Any) -> PackedBatch:
    return dataclasses.replace(BATCH, segments=(BATCH.segments[0]._replace(**changes),))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (dataclasses.replace(BATCH, token_ids=np.array([1, 2, 4096, 3])), "token 4096 .* vocabulary's 4096"),
        (dataclasses.replace(BATCH, token_ids=np.array([1, -1, 2, 3])), "row 1: token -1"),
        (dataclasses.replace(BATCH, slots=np.array([0, 1, 2, NUM_SLOTS])), "slot 1200 .* cache's 1200"),
        (dataclasses.replace(BATCH, slots=np.array([0, 1, 2, 2**40])), "slot 1099511627776"),
        (dataclasses.replace(BATCH, positions=np.array([0, 1, 2, -5])), "position -5"),
        (dataclasses.replace(BATCH, positions=np.array([0, 1, 2, 2**30])), "position 1073741824"),
        (dataclasses.replace(BATCH, positions=np.array([0, 1, 2, 4])), "position 4 and sees 4 tokens"),
        (dataclasses.replace(BATCH, logits_rows=np.array([0, 4])), "wanted row 4 .* batch's 4"),
        (dataclasses.replace(BATCH, logits_rows=np.array([-1])), "wanted row -1"),
        (dataclasses.replace(BATCH, slots=CHAIN[:3]), "3 slots for 4 rows"),
        (dataclasses.replace(BATCH, segments=()), "0 rows, the batch 4"),
        (with_segment(num_rows=3), "3 rows, the batch 4"),
        (with_segment(context_slots=np.array([0, 1, 2, 5000])), "context slot 5000"),
        (with_segment(context_slots=np.array([0, 1, 2])), "do not fit together"),
        (with_segment(mask=TREE[:3]), "mask of shape"),
        (with_segment(mask=TREE, tail_positions=CHAIN[:2]), "do not all have a position"),
        (with_segment(mask=TREE.T), "sees 4 tokens|not one at each position"),
        (with_segment(mask=np.eye(4, dtype=np.bool_)), "position 1 and sees 1 tokens|not one at each position"),
        (with_segment(mask=TREE[:, :2], tail_positions=CHAIN[:2]), "do not fit together"),
        (with_segment(mask=TREE, tail_positions=np.array([0, 1, 1, 2])), "not one at each position|and sees"),
        (PackedBatch(CHAIN[:0], CHAIN[:0], CHAIN[:0], (), CHAIN[:0]), "the batch 0"),
    ],
)
def test_a_wrong_batch_is_refused_and_the_next_one_works(batch: PackedBatch, message: str) -> None:
    runner = runner_of("draft")
    expected = runner.forward(BATCH)
    with pytest.raises(BatchRefused, match=message):
        runner.forward(batch)
    assert runner.forward(BATCH).equal(expected)


def test_a_model_it_does_not_take_is_refused() -> None:
    spec, weights = embedded_weights("draft")
    crowded = dataclasses.replace(spec, num_heads=97, num_kv_heads=1)
    with pytest.raises(ModelLoadError, match="97 heads share a KV head; the limit is 96"):
        NativeRunner(library(), crowded, weights, 16)
    with pytest.raises(ModelLoadError, match=r"keys and values in torch\.float16; allowed are float32 and bfloat16"):
        NativeRunner(library(), spec, weights, 16, kv_dtype=torch.float16)
    with pytest.raises(ModelLoadError, match="0 threads; allowed are 1 to 256"):
        NativeRunner(library(), spec, weights, 16, num_threads=0)


FORKED = """
import os
from native_support import runner_of
from specedge.model.batch import chain
runner = runner_of("draft", num_threads=2)
expected = runner.forward(chain(40)).numpy().tobytes()
child = os.fork()
if child == 0:
    raise SystemExit(runner.forward(chain(40)).numpy().tobytes() != expected)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_computes_and_ends() -> None:
    """A fork copies no threads: the caller does all the work, and waits for nobody at the end."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], check=True, timeout=100, env=environment)


def test_self_test_finds_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    assert self_test.find_fault(library()) is None
    reference = self_test.reference_logits
    monkeypatch.setattr(self_test, "reference_logits", lambda *inputs: reference(*inputs) * 1.001)
    assert "logits differ" in (self_test.find_fault(library()) or "")
