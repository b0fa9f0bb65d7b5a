"""The draft nodes of a step as rows, for all of its sessions at once.

A tree's root row, that of the last committed token, is followed by its nodes', parents first. The most probable path
leads, in order of depth: its rows then follow the root's directly, and when the target takes that path, no keys and
values have to move.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specedge.node_store import FloatArray, IntArray, NodeStore


@dataclass(frozen=True, slots=True)
class DraftTrees:
    """Trees end to end; every one has a root, and perhaps no node.

    Attributes:
        sizes: [num_trees] nodes of each tree.
        roots: [num_trees] row of each root, counted over all trees.
        rows: [num_nodes] row of each node, counted likewise.
        parents: [num_nodes] row of each node's parent, counted likewise.
        token_ids, positions: [num_nodes] positions are absolute.
        scores: [num_nodes] log-probability of each node's path, as of now.
        depth: of the deepest node, 1 for a child of its root; 0 without nodes.
    """

    sizes: IntArray
    roots: IntArray
    rows: IntArray
    parents: IntArray
    token_ids: IntArray
    positions: IntArray
    scores: FloatArray
    depth: int

    @property
    def num_rows(self) -> int:
        return len(self.sizes) + len(self.rows)


def bare_roots(num_trees: int) -> DraftTrees:
    """Trees without nodes."""
    none = np.empty(0, dtype=np.int64)
    return DraftTrees(np.zeros(num_trees, dtype=np.int64), np.arange(num_trees), none, none, none, none, np.empty(0), 0)


def lay_out(
    store: NodeStore, root_places: Sequence[int], places: IntArray, scores: FloatArray, sizes: IntArray
) -> DraftTrees:
    """Trees of chosen nodes.

    Args:
        store: where the nodes are.
        root_places: of each tree.
        places: the chosen nodes, tree after tree, best first and closed under ancestors.
        scores: of the chosen nodes.
        sizes: how many each tree has.
    """
    num_trees, num_nodes = len(sizes), len(places)
    if not num_nodes:
        return bare_roots(num_trees)
    every_root = np.array(root_places, dtype=np.int64)
    roots = sizes.cumsum() - sizes + np.arange(num_trees)
    owners = np.repeat(np.arange(num_trees), sizes)
    parent_places = store.parents.take(places)

    best_child = np.empty(store.capacity, dtype=np.int64)  # by place; only the trees' own places are ever written
    best_child[every_root] = best_child[places] = -1
    best_child[parent_places[::-1]] = places[::-1]  # of several children the one written last stays
    leads = np.empty(store.capacity, dtype=np.bool_)  # by place: whether it is on the most probable path
    leads[places] = False
    path_end = best_child.take(every_root)
    while len(path_end := path_end[path_end >= 0]):
        leads[path_end] = True
        path_end = best_child.take(path_end)

    is_other = ~leads.take(places)
    others = is_other.cumsum()  # so far, over all trees
    num_others = np.bincount(owners[is_other], minlength=num_trees)
    after_path = roots + sizes - num_others.cumsum()  # what makes the running count of others a row
    depths = store.positions.take(places) - store.positions.take(every_root).take(owners)
    rows = np.where(is_other, after_path.take(owners) + others, roots.take(owners) + depths)

    row_at = np.empty(store.capacity, dtype=np.int64)  # by place
    row_at[every_root], row_at[places] = roots, rows
    chosen_at = np.empty(num_trees + num_nodes, dtype=np.int64)  # by row: index into the chosen nodes
    chosen_at[rows] = np.arange(num_nodes)
    rows = np.arange(num_nodes) + owners + 1
    in_order = chosen_at.take(rows)
    places = places.take(in_order)
    return DraftTrees(
        sizes=sizes,
        roots=roots,
        rows=rows,
        parents=row_at.take(store.parents.take(places)),
        token_ids=store.tokens.take(places),
        positions=store.positions.take(places),
        scores=scores.take(in_order),
        depth=int(depths.max()),
    )
