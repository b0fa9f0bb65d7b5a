"""The Triton kernels in Triton's interpreter, against the reference and against themselves under other divisions.

`make test-kernels` runs them; the interpreter must be chosen before Triton is imported.
"""

import os
import random
from typing import Any

import numpy as np
import pytest
import torch

from specedge.model.attention.self_test import TOLERANCES, Chain, Tree, difference, random_batch, random_inputs
from specedge.model.attention_plan import AttentionPlan, plan_of
from specedge.model.batch import PackedBatch, Segment

pytest.importorskip("triton", reason="needs triton: make test-kernels")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1: make test-kernels", allow_module_level=True)

from specedge.model.attention.triton_backend import SPLIT_SIZE, Room, TritonBackend

CPU = torch.device("cpu")
NUM_SLOTS = 4096
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def backend_for(
    *, num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype = torch.float16, num_processors: int = 8
) -> TritonBackend:
    return TritonBackend(
        CPU,
        dtype,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        num_processors=num_processors,
    )


def inputs_for(plan: AttentionPlan, shape: dict[str, Any], dtype: torch.dtype = torch.float16) -> Inputs:
    """Random queries, keys and values; slots of no context hold NaN, which must not come near a result."""
    q, keys, values = random_inputs(1, num_rows=plan.num_rows, num_slots=NUM_SLOTS, dtype=dtype, device=CPU, **shape)
    unused = np.setdiff1d(np.arange(NUM_SLOTS), plan.context_slots)
    keys[unused] = float("nan")
    values[unused] = float("nan")
    return q, keys, values


def attended(backend: TritonBackend, plan: AttentionPlan, inputs: Inputs, window: int | None = None) -> torch.Tensor:
    q, keys, values = inputs
    return backend.attend(backend.prepare(plan, CPU), keys, values, q, scale=0.1, sliding_window=window)


@pytest.mark.parametrize(
    ("cases", "group", "head_dim", "window"),
    [
        ((Tree(0, 256),), 1, 64, None),
        ((Tree(61, 256),), 2, 64, None),
        ((Tree(64, 129, 127), Chain(3, 1)), 1, 64, None),
        ((Tree(100, 200, 56),), 1, 64, 9),
        ((Chain(700, 200),), 2, 64, None),
        ((Chain(700, 130), Chain(0, 65)), 2, 64, 33),
        ((Chain(1023, 1), Chain(1024, 1), Chain(1025, 1)), 8, 64, None),
        ((Tree(511, 3), Chain(63, 2), Tree(1, 1)), 5, 80, None),
        ((Tree(640, 40), Chain(65, 3)), 4, 96, None),
        ((Tree(640, 40, 30), Chain(65, 30)), 5, 128, None),
        ((Tree(640, 40, 30), Chain(600, 3)), 3, 256, 300),
        ((Tree(30, 12), Chain(40, 7)), 7, 256, None),
        ((Tree(530, 20), Chain(40, 7)), 6, 16, None),
    ],
)
def test_equals_the_reference(cases: tuple[Any, ...], group: int, head_dim: int, window: int | None) -> None:
    shape = {"num_heads": 2 * group, "num_kv_heads": 2, "head_dim": head_dim}
    plan = plan_of(random_batch(np.random.default_rng(0), cases, NUM_SLOTS))
    q, keys, values = inputs_for(plan, shape)
    found = difference(backend_for(**shape), plan, q, keys, values, sliding_window=window)
    assert found < TOLERANCES[torch.float16]


@pytest.mark.parametrize("seed", range(12))
def test_ragged_batches_equal_the_reference(seed: int) -> None:
    draw = random.Random(seed)
    cases: list[Chain | Tree] = []
    for _ in range(draw.randint(1, 6)):
        prefix = draw.choice((0, 1, 31, 63, 64, 65, 200, 511, 512, 600))
        num_rows = draw.choice((1, 1, 2, 8, 31, 64, 70))
        cases.append(draw.choice((Chain(prefix, num_rows), Tree(prefix, num_rows, draw.choice((0, 0, 3, 40))))))
    num_kv_heads, dtype = draw.choice((1, 2)), draw.choice((torch.float32, torch.float16))
    shape = {
        "num_heads": num_kv_heads * draw.randint(1, 8),
        "num_kv_heads": num_kv_heads,
        "head_dim": draw.choice((64, 80, 128)),
    }
    plan = plan_of(random_batch(np.random.default_rng(seed), cases, NUM_SLOTS))
    q, keys, values = inputs_for(plan, shape, dtype)
    backend = backend_for(**shape, dtype=dtype, num_processors=draw.choice((1, 8, 1000)))
    window = draw.choice((None, None, 1, 40))
    assert difference(backend, plan, q, keys, values, sliding_window=window) < TOLERANCES[dtype]


SHAPE = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 64}
ONE_KV_HEAD = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 64}
RAGGED = (Chain(700, 1), Tree(1100, 33, 7), Chain(3, 70), Tree(0, 5))


@pytest.mark.parametrize("window", [None, 300])
def test_the_division_changes_no_bit(window: int | None) -> None:
    plan = plan_of(random_batch(np.random.default_rng(2), RAGGED, NUM_SLOTS))
    q, keys, values = inputs_for(plan, ONE_KV_HEAD, torch.float32)
    whole, between, merged = (
        backend_for(**ONE_KV_HEAD, dtype=torch.float32, num_processors=num) for num in (1, 6, 1000)
    )
    assert not whole.prepare(plan, CPU).num_merges
    assert merged.prepare(plan, CPU).num_merges
    expected = attended(whole, plan, (q, keys, values), window)
    for backend in (between, merged):
        # What an earlier forward left in the room for parts must not come near a result either.
        assert attended(backend, plan, (q, keys, torch.full_like(values, float("nan")))).isnan().all()
        assert torch.equal(attended(backend, plan, (q, keys, values), window), expected)


def test_the_rest_of_the_batch_changes_no_bit() -> None:
    batch = random_batch(np.random.default_rng(3), RAGGED, NUM_SLOTS)
    plan = plan_of(batch)
    q, keys, values = inputs_for(plan, SHAPE)
    backend = backend_for(**SHAPE)
    together = attended(backend, plan, (q, keys, values))
    for segment, start, end in zip(batch.segments, plan.row_starts[:-1], plan.row_starts[1:], strict=True):
        rows = slice(int(start), int(end))
        own = np.arange(segment.num_rows)
        alone = plan_of(PackedBatch(own, batch.positions[rows], batch.slots[rows], (segment,), own))
        assert torch.equal(attended(backend, alone, (q[rows], keys, values)), together[rows])


def test_neither_chunks_nor_a_tree_around_it_change_a_chain() -> None:
    """A token's row is the same from a prompt's chunk, from plain decoding, and from the first path of a tree."""
    num_tokens = SPLIT_SIZE + 150
    slots = np.random.default_rng(4).permutation(NUM_SLOTS)[: num_tokens + 20]
    every = np.arange(num_tokens)

    def chain(start: int, stop: int) -> AttentionPlan:
        rows = every[start:stop]
        return plan_of(PackedBatch(rows, rows, slots[start:stop], (Segment(len(rows), slots[:stop]),), rows))

    inputs = inputs_for(chain(0, num_tokens), SHAPE)
    q, keys, values = inputs
    keys[slots[num_tokens:]] = 3.0
    values[slots[num_tokens:]] = 3.0
    backend = backend_for(**SHAPE)
    whole = attended(backend, chain(0, num_tokens), inputs)
    for start, stop in ((0, 100), (100, 130), (130, SPLIT_SIZE + 1), (SPLIT_SIZE + 1, num_tokens)):
        assert torch.equal(attended(backend, chain(start, stop), (q[start:stop], keys, values)), whole[start:stop])
    for token in (0, 63, 64, SPLIT_SIZE, num_tokens - 1):
        one = slice(token, token + 1)
        assert torch.equal(attended(backend, chain(token, token + 1), (q[one], keys, values)), whole[one])

    # A root, a path of 11 nodes, and 20 nodes beside it that hang on the root.
    start = num_tokens - 12
    mask = np.tri(32, dtype=np.bool_)
    mask[12:] = np.eye(32, dtype=np.bool_)[12:]
    mask[12:, 0] = True
    positions = np.concatenate([every[start:], np.full(20, start + 1)])
    tree = plan_of(PackedBatch(positions, positions, slots[start:], (Segment(32, slots, mask),), positions))
    beside = torch.cat([q[start:], torch.ones_like(q[:20])])
    assert torch.equal(attended(backend, tree, (beside, keys, values))[:12], whole[start:])


def test_a_reserved_state_is_filled_again_and_again() -> None:
    backend = backend_for(**SHAPE, num_processors=64)
    room = Room(num_rows=120, num_segments=6, num_context=NUM_SLOTS, num_tail=200, num_words=3)
    state = backend.reserve(room, CPU)
    address = state.tables["items"].data_ptr()
    for seed, cases in enumerate(
        ((Tree(0, 60, 90), *RAGGED[:2]), (Tree(40, 60),), (Chain(9, 1),), (Tree(600, 100, 60), Chain(1500, 2)))
    ):
        plan = plan_of(random_batch(np.random.default_rng(seed), cases, NUM_SLOTS))
        q, keys, values = inputs_for(plan, SHAPE)
        backend.fill(state, plan)
        padded = torch.cat([q, torch.zeros(room.num_rows - len(q), *q.shape[1:], dtype=q.dtype)])
        result = backend.attend(state, keys, values, padded, scale=0.1, sliding_window=None)
        assert torch.equal(result[: len(q)], attended(backend, plan, (q, keys, values)))
    assert state.tables["items"].data_ptr() == address


def test_room_says_what_fits() -> None:
    plan = plan_of(random_batch(np.random.default_rng(0), RAGGED, NUM_SLOTS))
    exact = Room.of(plan)
    assert exact.holds(exact)
    assert not exact.holds(Room.of(plan_of(random_batch(np.random.default_rng(0), [*RAGGED, Chain(0, 1)], NUM_SLOTS))))


def test_strided_queries() -> None:
    plan = plan_of(random_batch(np.random.default_rng(6), RAGGED, NUM_SLOTS))
    q, keys, values = inputs_for(plan, SHAPE)
    fused = torch.cat([q.flatten(1), torch.full((len(q), 256), float("nan"), dtype=q.dtype)], dim=1)
    backend = backend_for(**SHAPE)
    strided = fused[:, :256].unflatten(1, (4, 64))
    assert torch.equal(attended(backend, plan, (strided, keys, values)), attended(backend, plan, (q, keys, values)))
