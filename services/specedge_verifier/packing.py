"""Turns a schedule into the packed batch of a forward and the row groups of the sampler: arrays only, no tensors."""

from collections.abc import Sequence

import numpy as np

from specedge.model.batch import BoolArray, PackedBatch, Segment
from specedge.row_group import RowGroup
from specedge_verifier.scheduler import Planned, Schedule


def pack(schedule: Schedule) -> PackedBatch:
    """Lay a schedule's rows end to end."""
    token_ids: list[int] = []
    positions: list[int] = []
    wanted: list[int] = []
    contexts = []
    for item in schedule.planned:
        session, tree = item.session, item.tree
        end = item.start + item.num_chunk
        if item.samples:
            wanted += range(len(token_ids) + item.num_chunk - 1, len(token_ids) + item.num_rows)
        token_ids += session.tokens[item.start : end]
        token_ids += tree.token_ids
        positions += range(item.start, end)
        positions += tree.positions
        contexts.append(session.blocks.slots(0, end + len(tree.numbers)))
    masks = tree_masks(schedule.planned)
    planned = list(zip(schedule.planned, contexts, masks, strict=True))
    return PackedBatch(
        token_ids=np.array(token_ids, dtype=np.int64),
        positions=np.array(positions, dtype=np.int64),
        slots=np.concatenate([context[item.start :] for item, context, _ in planned]),
        segments=tuple([Segment(item.num_rows, context, mask) for item, context, mask in planned]),
        logits_rows=np.array(wanted, dtype=np.int64),
    )


def tree_masks(planned: Sequence[Planned]) -> list[BoolArray | None]:
    """The mask of each session that has a tree; None for the others, whose rows form a causal chain.

    The trees of all sessions are filled in together, row by row: a row sees what its parent sees, and itself.
    """
    owners = [index for index, item in enumerate(planned) if item.tree.numbers]
    masks: list[BoolArray | None] = [None] * len(planned)
    if not owners:
        return masks
    sizes = [len(planned[index].tree.parents) for index in owners]
    parents = np.zeros((max(sizes), len(owners)), dtype=np.int64)
    is_row = np.arange(max(sizes)) < np.array(sizes)[:, None]
    parents.T[is_row] = [parent for index in owners for parent in planned[index].tree.parents]
    trees = np.zeros((len(owners), max(sizes), max(sizes)), dtype=np.bool_)
    trees[:, 0, 0] = True
    every = np.arange(len(owners))
    for row in range(1, max(sizes)):
        trees[:, row] = trees[every, parents[row]]
        trees[:, row, row] = True
    for index, size, tree in zip(owners, sizes, trees, strict=True):
        masks[index] = below_chunk(tree[:size, :size], planned[index].num_chunk)
    return masks


def below_chunk(tree: BoolArray, num_chunk: int) -> BoolArray:
    """The mask of a tree's rows when `num_chunk` committed tokens, the root included, are computed with it.

    Args:
        tree: [1 + num_nodes] squared, the root first: which tree rows each of them sees.

    Returns:
        bool [num_chunk + num_nodes] squared: causal within the chunk, ancestors and self within the tree.
    """
    if num_chunk == 1:
        return tree
    num_before = num_chunk - 1
    mask = np.tri(num_before + len(tree), dtype=np.bool_)
    mask[num_before:, num_before:] = tree
    return mask


def row_group(item: Planned) -> RowGroup:
    """What the sampler needs to know about one session's rows: the root's, then the nodes'."""
    session, tree = item.session, item.tree
    paths: list[list[int]] | None = None
    if session.params.needs_paths:
        paths = [[]]
        for parent, token in zip(tree.parents[1:], tree.token_ids, strict=True):
            paths.append([*paths[parent], token])
    return RowGroup(
        params=session.params,
        positions=np.array([len(session.tokens) - 1, *tree.positions], dtype=np.int64) + 1,
        eos_ids=session.eos_ids,
        prompt_len=session.num_prompt,
        counts=session.counts,
        paths=paths,
    )
