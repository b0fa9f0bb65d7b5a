"""Turns a schedule into the packed batch of a forward and the row groups of the sampler: arrays only, no tensors."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from specedge.model.batch import PackedBatch, Segment
from specedge.row_group import RowGroup
from specedge_verifier.scheduler import Planned, Schedule


def pack(schedule: Schedule) -> PackedBatch:
    """Lay a schedule's rows end to end."""
    tokens: list[int] = []
    positions, slots, segments, wanted = [], [], [], []
    for item in schedule.planned:
        session, num_nodes, root = item.session, len(item.nodes), item.start + item.num_chunk - 1
        trie = session.trie
        if item.samples:
            wanted.append(np.arange(len(tokens) + item.num_chunk - 1, len(tokens) + item.num_rows))
        tokens += session.tokens[item.start : root + 1]
        tokens += [trie.token(number) for number in item.nodes]
        positions.append(np.arange(item.start, root + 1))
        if num_nodes:
            positions.append(np.array([trie.position(number) for number in item.nodes], dtype=np.int64))
        context = session.blocks.slots(0, item.start + item.num_rows)
        slots.append(context[item.start :])
        mask = tree_mask(item.parents, item.num_chunk) if num_nodes else None
        segments.append(Segment(item.num_rows, context, mask))
    return PackedBatch(
        token_ids=np.array(tokens, dtype=np.int64),
        positions=np.concatenate(positions),
        slots=np.concatenate(slots),
        segments=tuple(segments),
        logits_rows=np.concatenate(wanted) if wanted else np.empty(0, dtype=np.int64),
    )


def tree_mask(parents: Sequence[int], num_chunk: int) -> npt.NDArray[np.bool_]:
    """Which rows each row sees, for a chunk of committed tokens whose last one is the root of a tree.

    Args:
        parents: per tree row (root first) the tree row of its parent; the root's entry is not read.
        num_chunk: committed tokens, the root included.

    Returns:
        bool [num_chunk + num_nodes] squared: causal within the chunk, ancestors and self within the tree.
    """
    num_rows = num_chunk + len(parents) - 1
    mask = np.zeros((num_rows, num_rows), dtype=np.bool_)
    mask[:num_chunk, :num_chunk] = np.tri(num_chunk, dtype=np.bool_)
    root = num_chunk - 1
    for row in range(1, len(parents)):
        mask[root + row] = mask[root + parents[row]]
        mask[root + row, root + row] = True
    return mask


def row_group(item: Planned) -> RowGroup:
    """What the sampler needs to know about one session's rows: the root's, then the nodes'."""
    session, trie = item.session, item.session.trie
    positions = np.empty(1 + len(item.nodes), dtype=np.int64)
    positions[0] = len(session.tokens)
    positions[1:] = [trie.position(number) + 1 for number in item.nodes]
    paths: list[list[int]] | None = None
    if session.params.needs_paths:
        paths = [[], *([trie.token(step) for step in trie.path(number)] for number in item.nodes)]
    return RowGroup(
        params=session.params,
        positions=positions,
        eos_ids=session.eos_ids,
        prompt_len=session.num_prompt,
        counts=session.counts,
        paths=paths,
    )
