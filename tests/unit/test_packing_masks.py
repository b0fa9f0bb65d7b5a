"""Tree masks: all trees of a step at once say the same as following parents, row by row."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np

from specedge.trie import ROOT, TreeRows
from specedge_verifier.packing import below_chunk, tree_masks


def planned(parents: list[int], num_chunk: int) -> Any:
    numbers = list(range(len(parents)))
    return SimpleNamespace(num_chunk=num_chunk, tree=TreeRows(numbers, [ROOT, *parents], numbers, numbers, []))


def sees(parents: list[int], num_chunk: int, row: int, other: int) -> bool:
    if row < num_chunk:
        return other <= row
    tree_row, seen = row - num_chunk + 1, set()
    while tree_row:
        seen.add(tree_row + num_chunk - 1)
        tree_row = parents[tree_row - 1]
    return other < num_chunk or other in seen


def test_masks_equal_ancestors() -> None:
    draw = random.Random(4)
    trees = [[draw.randrange(row + 1) for row in range(size)] for size in (1, 0, 7, 16, 0, 3, 12)]
    chunks = [1, 1, 1, 3, 5, 2, 1]
    masks = tree_masks([planned(*item) for item in zip(trees, chunks, strict=True)])
    for parents, num_chunk, mask in zip(trees, chunks, masks, strict=True):
        if not parents:
            assert mask is None
            continue
        num_rows = num_chunk + len(parents)
        expected = [[sees(parents, num_chunk, row, other) for other in range(num_rows)] for row in range(num_rows)]
        assert mask is not None and mask.tolist() == expected


def test_no_trees_no_masks() -> None:
    assert tree_masks([planned([], 4), planned([], 1)]) == [None, None]


def test_a_chunk_sees_itself_causally() -> None:
    tree = np.array([[True, False], [True, True]])
    assert below_chunk(tree, 1) is tree
    assert below_chunk(tree, 3).tolist() == np.tri(4, dtype=bool).tolist()
