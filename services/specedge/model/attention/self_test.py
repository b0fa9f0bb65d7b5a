"""Random small cases, and how far a backend is from the reference on them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from specedge.model.attention.interface import AttentionBackend
from specedge.model.attention.sdpa import SdpaBackend
from specedge.model.attention_plan import AttentionPlan, plan_of
from specedge.model.batch import BoolArray, IntArray, PackedBatch, Segment

# Largest allowed difference between outputs, whose values are of the order of 1: some rounding steps of the dtype.
TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True, slots=True)
class Chain:
    """`num_rows` committed tokens after `prefix` others: a decode step or a chunk of a prompt."""

    prefix: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class Tree:
    """A random tree after `prefix` tokens; `num_computed` of its nodes were computed before and are no rows."""

    prefix: int
    num_rows: int
    num_computed: int = 0


def random_batch(rng: np.random.Generator, cases: Sequence[Chain | Tree], num_slots: int) -> PackedBatch:
    """One segment per case, in random slots that no two tokens share."""
    slots = rng.permutation(num_slots)
    segments: list[Segment] = []
    positions: list[IntArray] = []
    used = 0
    for case in cases:
        num_computed = case.num_computed if isinstance(case, Tree) else 0
        num_context = case.prefix + num_computed + case.num_rows
        context = slots[used : used + num_context]
        used += num_context
        if isinstance(case, Chain):
            segments.append(Segment(case.num_rows, context))
            positions.append(case.prefix + np.arange(case.num_rows))
            continue
        sees, depths = _random_tree(rng, num_computed + case.num_rows)
        tail_positions = case.prefix + depths
        segments.append(Segment(case.num_rows, context, sees[num_computed:], tail_positions if num_computed else None))
        positions.append(tail_positions[num_computed:])
    assert used <= num_slots, (used, num_slots)
    rows = np.concatenate([segment.context_slots[-segment.num_rows :] for segment in segments])
    return PackedBatch(np.zeros_like(rows), np.concatenate(positions), rows, tuple(segments), np.arange(len(rows)))


def random_inputs(
    seed: int,
    *,
    num_rows: int,
    num_slots: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(queries, keys, values), drawn on the CPU so that they are the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(num_rows, num_heads, head_dim), *[(num_slots, num_kv_heads, head_dim)] * 2]
    q, keys, values = [torch.randn(shape, generator=generator).to(device=device, dtype=dtype) for shape in shapes]
    return q, keys, values


def difference(
    backend: AttentionBackend,
    plan: AttentionPlan,
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    sliding_window: int | None,
) -> float:
    """Largest absolute difference from the reference, computed in float32; infinite where a value is not finite."""
    scale = q.shape[2] ** -0.5
    result = backend.attend(
        backend.prepare(plan, q.device), keys, values, q, scale=scale, sliding_window=sliding_window
    )
    reference = SdpaBackend()
    expected = reference.attend(
        reference.prepare(plan, q.device),
        keys.float(),
        values.float(),
        q.float(),
        scale=scale,
        sliding_window=sliding_window,
    )
    furthest = float((result.float() - expected).abs().max())
    return furthest if furthest == furthest else float("inf")


SELF_TEST_CASES: tuple[tuple[Chain | Tree, ...], ...] = (
    (Chain(0, 1), Chain(37, 1), Tree(300, 9), Chain(5, 40), Tree(63, 24, 7)),
    (Tree(1100, 33, 70), Chain(1400, 1)),  # several splits, several mask words
)
SELF_TEST_WINDOWS = (None, 50)


def self_test(
    backend: AttentionBackend,
    *,
    device: torch.device,
    dtype: torch.dtype,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
) -> float:
    """The largest difference over all self-test cases and windows."""
    worst = 0.0
    for seed, cases in enumerate(SELF_TEST_CASES):
        plan = plan_of(random_batch(np.random.default_rng(seed), cases, num_slots=4096))
        q, keys, values = random_inputs(
            seed,
            num_rows=plan.num_rows,
            num_slots=4096,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            dtype=dtype,
            device=device,
        )
        for window in SELF_TEST_WINDOWS:
            worst = max(worst, difference(backend, plan, q, keys, values, sliding_window=window))
    return worst


def _random_tree(rng: np.random.Generator, num_nodes: int) -> tuple[BoolArray, IntArray]:
    """(sees [num_nodes, num_nodes], depths [num_nodes]); every node's parent comes before it, the root first."""
    sees = np.eye(num_nodes, dtype=np.bool_)
    depths = np.zeros(num_nodes, dtype=np.int64)
    for node in range(1, num_nodes):
        parent = int(rng.integers(max(0, node - 12), node))
        sees[node] |= sees[parent]
        depths[node] = depths[parent] + 1
    return sees, depths
