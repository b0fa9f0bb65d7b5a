"""Turns a schedule into the packed batch of a forward and the row groups of the sampler: arrays only, no tensors."""

import numpy as np
from numpy.typing import NDArray

from specedge.grammar.hold_back import hold_back
from specedge.model.batch import BoolArray, IntArray, PackedBatch, Segment
from specedge.row_group import RowGroup
from specedge_verifier.draft_trees import DraftTrees
from specedge_verifier.scheduler import Schedule
from specedge_verifier.session import Session
from specedge_verifier.step_logprobs import prompt_rows


def pack(schedule: Schedule) -> PackedBatch:
    """Lay a schedule's rows end to end."""
    trees = schedule.trees
    own_slots, segments = [], []
    chunk_tokens: list[int] = []
    masks = iter(tree_masks(trees))
    for item in schedule.planned:
        session, start, num_chunk = item.session, item.start, item.num_chunk
        end = start + num_chunk
        num_rows = num_chunk + item.num_nodes
        if num_chunk == 1:
            chunk_tokens.append(session.trie.committed[start])
        else:
            chunk_tokens += session.trie.committed[start:end]
        context = session.blocks.slots(0, start + num_rows)
        own_slots.append(context[start:])
        mask = next(masks) if item.samples else None
        if mask is not None and num_chunk > 1:
            mask = below_chunk(mask, num_chunk)
        segments.append(Segment(num_rows, context, mask))
    if len(chunk_tokens) == len(trees.sizes):  # every session decodes: the batch is the trees
        token_ids, positions = np.empty((2, trees.num_rows), dtype=np.int64)
        token_ids[trees.roots], token_ids[trees.rows] = chunk_tokens, trees.token_ids
        positions[trees.roots] = [item.start for item in schedule.planned]
        positions[trees.rows] = trees.positions
        return PackedBatch(token_ids, positions, np.concatenate(own_slots), tuple(segments), np.arange(trees.num_rows))
    starts, chunks, num_nodes, samples = np.array(
        [(item.start, item.num_chunk, item.num_nodes, item.samples) for item in schedule.planned], dtype=np.int64
    ).T
    ends = (chunks + num_nodes).cumsum()
    roots = ends - num_nodes - 1
    behind = chunks.cumsum().repeat(chunks) - np.arange(1, len(chunk_tokens) + 1)  # rows from each to its chunk's last
    chunk_rows = roots.repeat(chunks) - behind
    num_rows = int(ends[-1])
    is_wanted = np.ones(num_rows, dtype=np.bool_)
    is_wanted[chunk_rows] = False
    token_ids, positions = np.empty((2, num_rows), dtype=np.int64)
    token_ids[chunk_rows], token_ids[is_wanted] = chunk_tokens, trees.token_ids
    positions[chunk_rows] = (starts + chunks - 1).repeat(chunks) - behind
    positions[is_wanted] = trees.positions
    is_wanted[roots[samples != 0]] = True
    if (scored := prompt_rows(schedule)) is not None:
        is_wanted[scored.rows] = True
    return PackedBatch(
        token_ids=token_ids,
        positions=positions,
        slots=np.concatenate(own_slots),
        segments=tuple(segments),
        logits_rows=is_wanted.nonzero()[0],
    )


def tree_masks(trees: DraftTrees) -> list[BoolArray | None]:
    """Which rows of its tree each row sees; None for a tree without nodes.

    What a row sees is a set of bits. It is joined with its ancestors' in leaps that double, in all trees together.
    """
    widest = 1 + int(trees.sizes.max(initial=0))
    if widest == 1:
        return [None] * len(trees.sizes)
    every = np.arange(trees.num_rows)
    own = every - np.repeat(trees.roots, trees.sizes + 1)
    bits = np.packbits(np.eye(widest, dtype=np.bool_), axis=1, bitorder="little").take(own, axis=0)
    ancestors = every
    ancestors[trees.rows] = trees.parents
    for _ in range(trees.depth.bit_length()):
        bits |= bits.take(ancestors, axis=0)
        ancestors = ancestors.take(ancestors)
    sees = np.unpackbits(bits, axis=1, count=widest, bitorder="little").view(np.bool_)
    ends = (trees.roots + trees.sizes + 1).tolist()
    return [
        sees[end - size - 1 : end, : size + 1] if size else None
        for size, end in zip(trees.sizes.tolist(), ends, strict=True)
    ]


def below_chunk(tree: BoolArray, num_chunk: int) -> BoolArray:
    """The mask of a tree's rows when `num_chunk` committed tokens, the root included, are computed with it.

    Args:
        tree: [1 + num_nodes] squared, the root first: which tree rows each of them sees.

    Returns:
        bool [num_chunk + num_nodes] squared: causal within the chunk, ancestors and self within the tree.
    """
    num_before = num_chunk - 1
    mask = np.tri(num_before + len(tree), dtype=np.bool_)
    mask[num_before:, num_before:] = tree
    return mask


def row_groups(schedule: Schedule) -> list[RowGroup]:
    """What the sampler needs to know about the rows of each session that samples: the root's, then the nodes'.

    Grammars are followed here, along every path of a tree: on a GPU while it computes the rows.
    """
    trees = schedule.trees
    sampling = [item for item in schedule.planned if item.samples]
    positions = np.empty(trees.num_rows, dtype=np.int64)
    positions[trees.roots] = [len(item.session.tokens) for item in sampling]
    positions[trees.rows] = trees.positions + 1
    groups = []
    end = 0
    for index, item in enumerate(sampling):
        session = item.session
        start, end = end, end + 1 + item.num_nodes
        own = positions[start:end]
        groups.append(
            RowGroup(
                session.params,
                own,
                session.eos_ids,
                session.num_prompt,
                session.counts,
                tree_paths(trees, index) if session.params.needs_paths else None,
                session.tokens,
                None if session.grammar is None else allowed_tokens(session, own, trees, index),
            )
        )
    return groups


def allowed_tokens(session: Session, positions: IntArray, trees: DraftTrees, index: int) -> NDArray[np.int32]:
    """What a session's grammar allows at each row of its tree, as in `RowGroup.allowed`."""
    assert session.grammar is not None
    root, size = int(trees.roots[index]), int(trees.sizes[index])
    own = slice(root - index, root - index + size)
    masks = session.grammar.masks(trees.parents[own] - root, trees.token_ids[own])
    if session.params.min_tokens:
        is_early = positions - session.num_prompt < session.params.min_tokens
        hold_back(masks, is_early, (*session.eos_ids, *session.params.stop_token_ids))
    return masks


def tree_paths(trees: DraftTrees, index: int) -> list[list[int]]:
    """The tokens from below the root down to each row of one tree, the root's own included."""
    root, size = int(trees.roots[index]), int(trees.sizes[index])
    own = slice(root - index, root - index + size)
    paths: list[list[int]] = [[]]
    for parent, token in zip(trees.parents[own].tolist(), trees.token_ids[own].tolist(), strict=True):
        paths.append([*paths[parent - root], token])
    return paths
