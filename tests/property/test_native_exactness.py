"""The native engine's law: a row's logits are the same bits whatever else is computed, in which order and by whom."""

from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from native_support import (
    Session,
    embedded_weights,
    library,
    needs_compiler,
    plain_decoding,
    prefill,
    runner_of,
    sessions,
    tree_batch,
)

from specedge.model.batch import PackedBatch, Segment, chain
from specedge.model.lean.weights import ModelWeights
from specedge.model.native.engine import INSTRUCTION_SETS
from specedge.model.native.runner import NativeRunner
from specedge_verifier.packing import below_chunk

pytestmark = needs_compiler
VOCAB_SIZES = {"target": 4096, "draft": 4096, "tiny": 71}
# (prefix length, nodes): none, short, up to and across the borders of 256-token chunks.
SHAPES = [(0, 5), (3, 9), (31, 1), (100, 32), (252, 14), (256, 2), (290, 20), (31, 70)]


@pytest.mark.parametrize("model", VOCAB_SIZES)
@pytest.mark.parametrize("limit", INSTRUCTION_SETS)
def test_tree_rows_equal_plain_decoding(model: str, limit: str) -> None:
    """Eight trees in one forward on two threads against one row at a time on one, other chunks before both."""
    draw = Random(len(model))
    items = sessions(draw, VOCAB_SIZES[model], SHAPES)
    together = runner_of(model, num_threads=2, limit=limit)
    alone = runner_of(model, num_threads=1, limit=limit)
    for item in items:
        prefill(together, item, 512)
        prefill(alone, item, draw.choice([7, 16, 100]))
    found = together.forward(tree_batch(items))
    assert found.equal(torch.cat([plain_decoding(alone, item) for item in items]))
    assert len(found.unique(dim=0)) > len(found) / 2


def test_prefill_in_any_chunks_leaves_the_same_keys_values_and_logits() -> None:
    item = sessions(Random(1), 4096, [(0, 1), (541, 6)])[1]
    runners = [runner_of("target", num_threads=threads) for threads in (1, 1, 1, 2, 3)]
    for runner, chunk in zip(runners, (1, 5, 64, 300, 541), strict=True):
        prefill(runner, item, chunk)
    logits = [runner.forward(tree_batch([item])) for runner in runners]
    for runner, found in zip(runners[1:], logits[1:], strict=True):
        assert found.equal(logits[0])
        for layer in range(6):
            for ours, first in zip(runner.cache.layer(layer), runners[0].cache.layer(layer), strict=True):
                assert ours.equal(first)


@pytest.mark.parametrize("model", ["target", "tiny"])
@pytest.mark.parametrize("limit", INSTRUCTION_SETS)
def test_rounded_keys_and_values_obey_the_same_law(model: str, limit: str) -> None:
    draw = Random(9)
    items = sessions(draw, VOCAB_SIZES[model], SHAPES)
    together = runner_of(model, num_threads=2, limit=limit, kv_dtype=torch.bfloat16)
    alone = runner_of(model, num_threads=1, limit=limit, kv_dtype=torch.bfloat16)
    exact = runner_of(model, num_threads=1, limit=limit)
    assert together.cache.num_bytes * 2 == exact.cache.num_bytes
    for item in items:
        prefill(together, item, 512)
        prefill(alone, item, draw.choice([7, 16, 100]))
        prefill(exact, item, 512)
    found = together.forward(tree_batch(items))
    assert found.equal(torch.cat([plain_decoding(alone, item) for item in items]))
    for layer in range(2):
        for ours, other in zip(together.cache.layer(layer), alone.cache.layer(layer), strict=True):
            assert ours.equal(other)
    # The first layer's keys and values come from numbers that nothing has rounded yet.
    for rounded, whole in zip(together.cache.layer(0), exact.cache.layer(0), strict=True):
        used = np.concatenate([item.slots[: len(item.prefix)] for item in items])
        assert rounded[used].equal(whole[used].bfloat16())


@pytest.mark.parametrize("model", VOCAB_SIZES)
def test_neighbours_their_number_and_their_order_change_nothing(model: str) -> None:
    draw = Random(2)
    items = sessions(draw, VOCAB_SIZES[model], [(draw.randrange(60), 1 + draw.randrange(12)) for _ in range(12)])
    runner = runner_of(model, num_threads=2)
    for item in items:
        prefill(runner, item, 64)
    alone = [runner.forward(tree_batch([item])) for item in items]
    for _ in range(20):
        some = draw.sample(range(len(items)), draw.randint(1, len(items)))
        found = runner.forward(tree_batch([items[index] for index in some]))
        assert found.equal(torch.cat([alone[index] for index in some]))


def test_threads_change_nothing() -> None:
    items = sessions(Random(3), 4096, [(0, 3), (530, 40), (100, 256)])
    results = []
    for num_threads in (1, 2, 3, 5):
        runner = runner_of("target", num_threads=num_threads)
        assert runner.engine.num_threads == num_threads
        for item in items:
            prefill(runner, item, 200)
        repeated = [runner.forward(tree_batch(items)) for _ in range(3)]
        repeated += [runner.forward(tree_batch([item])) for item in items]
        results.append(torch.cat(repeated))
    assert all(result.equal(results[0]) for result in results[1:])


def test_thousands_of_short_loops_lose_and_mix_nothing() -> None:
    runner = runner_of("draft", num_threads=3)
    batches = [chain(num_rows) for num_rows in (1, 2, 40)]
    expected = [runner.forward(batch) for batch in batches]
    for step in range(400):
        assert runner.forward(batches[step % 3]).equal(expected[step % 3])


def test_vector_widths_change_nothing_where_multiply_add_is_fused() -> None:
    wide, narrow = runner_of("target", num_threads=1), runner_of("target", num_threads=1, limit="avx2")
    if (wide.engine.instruction_set, narrow.engine.instruction_set) != ("avx512", "avx2"):
        pytest.skip("needs AVX-512")
    item = sessions(Random(4), 4096, [(300, 24)])[0]
    for runner in (wide, narrow):
        prefill(runner, item, 128)
    assert wide.forward(tree_batch([item])).equal(narrow.forward(tree_batch([item])))


def test_a_tree_below_a_chunk_equals_the_tree_after_it() -> None:
    """The chunk's last token is the tree's root, as when a prompt's end and a tree are computed at once."""
    item = sessions(Random(5), 4096, [(270, 18)])[0]
    plain, mixed = runner_of("target", num_threads=1), runner_of("target", num_threads=2)
    prefill(plain, item, 64)
    expected = plain.forward(tree_batch([item]))
    num_before = 130
    start = len(item.prefix) - num_before
    prefill(mixed, Session(item.prefix[:start], item.tokens[:1], [-1], item.slots), 64)
    rows = np.arange(num_before)
    batch = PackedBatch(
        np.concatenate((item.prefix[start:], item.tokens)),
        np.concatenate((start + rows, item.positions)),
        item.slots[start:],
        (Segment(num_before + len(item.tokens), item.slots, below_chunk(item.mask, num_before + 1)),),
        num_before + np.arange(len(item.tokens)),
    )
    assert mixed.forward(batch).equal(expected)


def test_nodes_expanded_level_by_level_equal_the_whole_tree() -> None:
    """A drafter's batches: the tail is computed ancestors in any order and then the rows, all with positions."""
    draw = Random(6)
    item = sessions(draw, 4096, [(249, 40)])[0]
    whole, stepwise = runner_of("draft", num_threads=1), runner_of("draft", num_threads=2)
    prefill(whole, item, 64)
    prefill(stepwise, item, 10)
    expected = whole.forward(tree_batch([item]))
    node_slots = item.slots[len(item.prefix) :]
    for depth in range(max(item.depths) + 1):
        rows = [node for node, its_depth in enumerate(item.depths) if its_depth == depth]
        ancestors = [node for node in range(len(item.tokens)) if node not in rows and item.mask[rows, node].any()]
        draw.shuffle(ancestors)
        tail = ancestors + rows
        segment = Segment(
            len(rows),
            np.concatenate((item.slots[: len(item.prefix)], node_slots[tail])),
            item.mask[rows][:, tail],
            item.positions[tail],
        )
        batch = PackedBatch(item.tokens[rows], item.positions[rows], node_slots[rows], (segment,), np.arange(len(rows)))
        assert stepwise.forward(batch).equal(expected[rows])


def test_bfloat16_weights_give_the_bits_of_the_same_weights_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, weights = embedded_weights("target")
    item = sessions(Random(7), 4096, [(40, 13)])[0]

    def wide(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) else value

    layers = [type(layer)(**{name: wide(getattr(layer, name)) for name in layer.__slots__}) for layer in weights.layers]
    plain = ModelWeights(wide(weights.embed), layers, wide(weights.final_norm), wide(weights.head))
    runners = [NativeRunner(library(), spec, some, 1200) for some in (weights, plain)]
    monkeypatch.setattr(library(), "specedge_is_bf16", lambda *_: 0)
    runners.append(NativeRunner(library(), spec, plain, 1200))
    sizes = [runner.engine.num_bytes for runner in runners]
    assert sizes[0] < sizes[2] and sizes[1] < sizes[2]
    for runner in runners:
        prefill(runner, item, 64)
    logits = [runner.forward(tree_batch([item])) for runner in runners]
    assert logits[1].equal(logits[0]) and logits[2].equal(logits[0])


def test_moved_keys_and_values_serve_the_next_step() -> None:
    item = sessions(Random(8), 4096, [(20, 10)])[0]
    runner = runner_of("target", num_threads=2)
    prefill(runner, item, 64)
    runner.forward(tree_batch([item]))
    node = len(item.tokens) - 1
    path = item.path_slots(node)
    free = np.setdiff1d(np.arange(100), item.slots)[: len(path)]
    runner.copy_kv(path, free)
    ids = np.concatenate((item.prefix, item.tokens[item.mask[node]]))
    whole = runner_of("target", num_threads=1)
    rows = np.arange(len(ids) + 1)
    text = np.append(ids, 77)
    expected = whole.forward(PackedBatch(text, rows, rows, (Segment(len(rows), rows),), rows[-1:]))
    last = np.setdiff1d(np.arange(100), np.concatenate((item.slots, free)))[:1]
    segment = Segment(1, np.concatenate((free, last)))
    assert runner.forward(PackedBatch(text[-1:], rows[-1:], last, (segment,), np.array([0]))).equal(expected)
