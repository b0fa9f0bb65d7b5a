"""A lean model whose forwards are recorded with the Triton kernels inside, in Triton's interpreter.

What a CUDA graph would replay is run again here: the same launches, over the same fixed memory. `make test-kernels`
runs it; the interpreter must be chosen before Triton is imported.
"""

import os
from pathlib import Path

import pytest
import torch
from lean_models import FAMILIES, VOCAB_SIZE, load_lean, save_model
from packed_batches import NUM_SLOTS, mixed_batches

from specedge.model.attention.interface import RecordableBackend
from specedge.model.lean.runner import LeanRunner

pytest.importorskip("triton", reason="needs triton: make test-kernels")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1: make test-kernels", allow_module_level=True)

from specedge.model.attention.triton_backend import TritonBackend


@pytest.mark.parametrize("family", ["qwen3", "qwen3-sliding", "mistral-sliding"])
def test_recorded_forwards_equal_the_reference(family: str, tmp_path: Path) -> None:
    save_model(FAMILIES[family], tmp_path)
    spec, weights = load_lean(tmp_path)
    heads = {"num_heads": spec.num_heads, "num_kv_heads": spec.num_kv_heads, "head_dim": spec.head_dim}
    backend = TritonBackend(torch.device("cpu"), torch.float32, **heads, num_processors=8)
    assert isinstance(backend, RecordableBackend)
    reference = LeanRunner(spec, weights, NUM_SLOTS)
    eager = LeanRunner(spec, weights, NUM_SLOTS, backend=backend)
    recorded = LeanRunner(spec, weights, NUM_SLOTS, backend=backend, row_buckets=(2, 32))
    assert recorded.row_buckets == (2, 32)
    for batch in mixed_batches(VOCAB_SIZE):
        expected = reference.forward(batch)
        torch.testing.assert_close(eager.forward(batch), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(recorded.forward(batch), expected, atol=1e-4, rtol=1e-4)
