"""Draft trees for tests, from plain lists."""

from collections.abc import Sequence

import numpy as np

from specedge_verifier.draft_trees import DraftTrees


def draft_trees(parents: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]]) -> DraftTrees:
    """Trees whose nodes are given by the row of their parent in their own tree (0 is the root) and their token."""
    sizes = np.array([len(tree) for tree in parents], dtype=np.int64)
    roots = np.cumsum(sizes + 1) - sizes - 1
    owners = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.arange(len(owners)) + owners + 1
    above = [int(root) + parent for root, tree in zip(roots, parents, strict=True) for parent in tree]
    depths = [0] * (len(rows) + len(sizes))
    for row, parent in zip(rows, above, strict=True):
        depths[row] = depths[parent] + 1
    token_ids = np.array([token for tree in tokens for token in tree], dtype=np.int64)
    return DraftTrees(
        sizes=sizes,
        roots=roots,
        rows=rows,
        parents=np.array(above, dtype=np.int64),
        token_ids=token_ids,
        positions=np.zeros_like(rows),
        scores=np.zeros(len(rows)),
        depth=max(depths, default=0),
    )
