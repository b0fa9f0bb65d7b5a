"""Whether a built library computes what it should on this machine: tiny random models against plain torch, at start."""

import ctypes
from itertools import product

import numpy as np
import torch

from specedge.model.batch import PackedBatch, Segment
from specedge.model.lean.spec import LayerSpec, ModelSpec
from specedge.model.lean.weights import LayerWeights, ModelWeights
from specedge.model.native.reference import reference_logits
from specedge.model.native.runner import KV_DTYPES, NativeRunner

# By what keys and values are rounded to: sums that differ in the last bit can round to neighbours.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-3}
NUM_PREFIX = 45
PARENTS = (-1, 0, 0, 1, 3, 2)  # of a token tree's rows
VOCAB_SIZE = 71


def find_fault(library: ctypes.CDLL) -> str | None:
    """What is wrong with the library; None where nothing is."""
    for dtype, kv_dtype in product((torch.bfloat16, torch.float32), KV_DTYPES):
        spec, weights = tiny_model(dtype)
        runner = NativeRunner(library, spec, weights, num_slots=64, kv_dtype=kv_dtype, num_threads=2)
        if reason := _compare(runner, spec, weights, kv_dtype):
            names = (str(name).removeprefix("torch.") for name in (dtype, kv_dtype))
            return f"{runner.engine.instruction_set}, weights and cache in {' and '.join(names)}: {reason}"
    return None


def tiny_model(dtype: torch.dtype) -> tuple[ModelSpec, ModelWeights]:
    """A random model with every feature: shared KV heads, norms of queries and keys, biases, a sliding window."""
    random = torch.Generator().manual_seed(5)
    hidden, inner, head_dim, num_heads, num_kv_heads = 40, 56, 24, 4, 2

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random).mul_(shape[-1] ** -0.5).to(dtype)

    def vector(size: int) -> torch.Tensor:
        return torch.rand(size, generator=random).add_(0.5).to(dtype)

    spec = ModelSpec(
        family="qwen3",
        hidden_size=hidden,
        intermediate_size=inner,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=VOCAB_SIZE,
        rms_eps=1e-6,
        is_tied=False,
        has_qk_norm=True,
        has_qkv_bias=True,
        layers=(LayerSpec(None), LayerSpec(7)),
        inv_freq=(10000.0 ** -(np.arange(0, head_dim, 2) / head_dim)).astype(np.float32),
        rope_scale=1.0,
        max_positions=64,
    )
    qkv_size = (num_heads + 2 * num_kv_heads) * head_dim
    layers = [
        LayerWeights(
            input_norm=vector(hidden),
            qkv=matrix(qkv_size, hidden),
            qkv_bias=vector(qkv_size),
            q_norm=vector(head_dim),
            k_norm=vector(head_dim),
            o=matrix(hidden, num_heads * head_dim),
            post_norm=vector(hidden),
            gate_up=matrix(2 * inner, hidden),
            down=matrix(hidden, inner),
        )
        for _ in spec.layers
    ]
    embed = torch.randn((VOCAB_SIZE, hidden), generator=random).to(dtype)
    return spec, ModelWeights(embed, layers, vector(hidden), matrix(VOCAB_SIZE, hidden))


def _compare(runner: NativeRunner, spec: ModelSpec, weights: ModelWeights, kv_dtype: torch.dtype) -> str | None:
    draw = np.random.default_rng(0)
    slots = draw.permutation(runner.num_slots)[: NUM_PREFIX + len(PARENTS)]
    prefix, tree = draw.integers(0, VOCAB_SIZE, NUM_PREFIX), draw.integers(0, VOCAB_SIZE, len(PARENTS))
    rows = np.arange(NUM_PREFIX)
    chain = PackedBatch(prefix, rows, slots[rows], (Segment(NUM_PREFIX, slots[rows]),), rows)
    found = [runner.forward(chain)]
    expected = [reference_logits(spec, weights, prefix.tolist(), kv_dtype)]
    mask = np.eye(len(PARENTS), dtype=np.bool_)
    depths = np.zeros(len(PARENTS), dtype=np.int64)
    paths: list[list[int]] = []
    for row, parent in enumerate(PARENTS):
        if parent >= 0:
            mask[row] |= mask[parent]
            depths[row] = depths[parent] + 1
        paths.append([*(paths[parent] if parent >= 0 else prefix.tolist()), int(tree[row])])
        expected.append(reference_logits(spec, weights, paths[-1], kv_dtype)[-1:])
    segment = Segment(len(PARENTS), slots, mask)
    nodes = np.arange(len(PARENTS))
    found.append(runner.forward(PackedBatch(tree, NUM_PREFIX + depths, slots[NUM_PREFIX:], (segment,), nodes)))
    if not runner.forward(chain).equal(found[0]):
        return "the same batch twice gives different logits"
    difference = float((torch.cat(found) - torch.cat(expected)).abs().max())
    return None if difference <= TOLERANCES[kv_dtype] else f"logits differ from torch's by {difference:.2g}"
