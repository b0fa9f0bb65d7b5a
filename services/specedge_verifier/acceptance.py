"""Acceptance: the walk from the root along the target's own tokens.

Every committed token is the target's own sample after the text before it, so the walk is exact for any tree; the tree
only decides how many samples one step can use.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specedge.node_store import IntArray
from specedge_verifier.draft_trees import DraftTrees


@dataclass(slots=True)
class Walk:
    """The accepted path: its rows, counted from the root's, and its tokens with the bonus token as the last one."""

    rows: list[int]
    tokens: list[int]


def walk(trees: DraftTrees, sampled: Sequence[int] | IntArray) -> list[Walk]:
    """In every tree follow the children that match what the target sampled, as far as they go.

    Args:
        trees: siblings differ in their tokens.
        sampled: the target's token after each row.
    """
    own = np.asarray(sampled, dtype=np.int64)
    is_match = trees.token_ids == own[trees.parents]
    following = np.zeros(trees.num_rows, dtype=np.int64)  # 0 where the path ends: the first row is a root
    following[trees.parents[is_match]] = trees.rows[is_match]
    next_row, tokens = following.tolist(), own.tolist()
    walks = []
    for root in trees.roots.tolist():
        row, rows, committed = root, [], [tokens[root]]
        while row := next_row[row]:
            rows.append(row - root)
            committed.append(tokens[row])
        walks.append(Walk(rows, committed))
    return walks
