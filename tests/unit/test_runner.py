"""The packed paged forward equals plain transformers runs of every path, for each supported family."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
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

from specedge.model.batch import PackedBatch, Segment
from specedge.model.runner import TransformersRunner
from specedge.model.transformers_attention import ATTENTION_NAME

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen2-sliding": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=6, max_window_layers=1)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16)),
    "mistral-sliding": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=5)),
}


def plain_logits(model: Any, token_ids: list[int]) -> torch.Tensor:
    """Logits after the last token of one sequence, by transformers alone."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([token_ids])).logits[0, -1]  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prefill_chunk_and_two_trees_in_one_forward(family: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = FAMILIES[family]().to(dtype).eval()
    plain.set_attn_implementation("eager")
    paged = FAMILIES[family]().to(dtype).eval()
    paged.load_state_dict(plain.state_dict())
    paged.set_attn_implementation(ATTENTION_NAME)
    runner = TransformersRunner(paged, num_slots=128)
    rng = np.random.default_rng(0)
    slots = rng.permutation(128).astype(np.int64)

    prefix_a, prefix_b = rng.integers(0, 97, 11), rng.integers(0, 97, 4)
    slots_a, slots_b, slots_c = slots[:40], slots[40:80], slots[80:]
    for prefix, own in ((prefix_a, slots_a), (prefix_b, slots_b)):
        n = len(prefix)
        runner.forward(PackedBatch(prefix, np.arange(n), own[:n], (Segment(n, own[:n]),), np.array([n - 1])))

    # Session a: a root and the tree root -> {1 -> {2, 3 -> 4}, 5}; session b: a root alone; session c: a first chunk.
    parents = [-1, 0, 1, 1, 3, 0]
    tree = rng.integers(0, 97, 6)
    depth, mask, paths = [0] * 6, np.zeros((6, 6), dtype=bool), [[int(tree[0])]] + [[] for _ in range(5)]
    mask[0, 0] = True
    for row in range(1, 6):
        depth[row] = depth[parents[row]] + 1
        mask[row] = mask[parents[row]]
        mask[row, row] = True
        paths[row] = [*paths[parents[row]], int(tree[row])]
    root_b, chunk_c = rng.integers(0, 97, 1), rng.integers(0, 97, 9)
    batch = PackedBatch(
        token_ids=np.concatenate([tree, root_b, chunk_c]),
        positions=np.concatenate([11 + np.array(depth), [4], np.arange(9)]),
        slots=np.concatenate([slots_a[11:17], slots_b[4:5], slots_c[:9]]),
        segments=(Segment(6, slots_a[:17], mask), Segment(1, slots_b[:5]), Segment(9, slots_c[:9])),
        logits_rows=np.array([0, 1, 2, 3, 4, 5, 6, 15]),
    )
    logits = runner.forward(batch)
    sequences = [[*prefix_a.tolist(), *path] for path in paths]
    sequences += [[*prefix_b.tolist(), int(root_b[0])], chunk_c.tolist()]
    tolerance = 1e-5 if dtype is torch.float32 else 6e-2
    for row, sequence in zip(logits, sequences, strict=True):
        torch.testing.assert_close(row, plain_logits(plain, sequence).float(), atol=tolerance, rtol=tolerance)


def test_moved_kv_serves_the_next_step() -> None:
    torch.manual_seed(1)
    model = FAMILIES["qwen3"]().eval()
    model.set_attn_implementation(ATTENTION_NAME)
    runner = TransformersRunner(model, num_slots=16)
    chain = np.arange(8, dtype=np.int64)
    tokens = np.array([5, 6, 7, 8, 9, 10, 11, 12])
    expected = runner.forward(PackedBatch(tokens, chain, chain, (Segment(8, chain),), np.array([7])))
    runner.cache.layer(0)[0].zero_()
    first = np.concatenate([chain[:4], [12, 13, 14]])
    runner.forward(PackedBatch(tokens[:7], chain[:7], first, (Segment(7, first),), np.array([6])))
    runner.copy_kv(np.array([12, 13, 14]), np.array([4, 5, 6]))
    last = PackedBatch(tokens[7:], chain[7:], chain[7:], (Segment(1, chain),), np.array([0]))
    torch.testing.assert_close(runner.forward(last), expected, atol=1e-5, rtol=1e-5)


def test_paged_model_refuses_a_plain_call() -> None:
    model = FAMILIES["llama"]().eval()
    model.set_attn_implementation(ATTENTION_NAME)
    with pytest.raises(RuntimeError, match="ModelRunner"):
        model(input_ids=torch.tensor([[1, 2]]))
