"""Tree masks: all trees of a step at once say the same as following parents, row by row."""

import random

import numpy as np
import pytest
from draft_trees import draft_trees

from specedge_verifier.packing import below_chunk, tree_masks, tree_paths


def sees(parents: list[int], row: int, other: int) -> bool:
    seen = {0, row}
    while row:
        seen.add(row)
        row = parents[row - 1]
    return other in seen


@pytest.mark.parametrize("sizes", [(1, 0, 7, 16, 0, 3, 12), (1,), (0, 64), (63,), (200, 0, 130)])
def test_masks_equal_ancestors(sizes: tuple[int, ...]) -> None:
    draw = random.Random(4)
    trees = [[draw.randrange(max(0, row - 5), row + 1) for row in range(size)] for size in sizes]
    masks = tree_masks(draft_trees(trees, trees))
    for parents, mask in zip(trees, masks, strict=True):
        if not parents:
            assert mask is None
            continue
        rows = range(1 + len(parents))
        assert mask is not None and mask.tolist() == [[sees(parents, row, other) for other in rows] for row in rows]


def test_no_trees_no_masks() -> None:
    assert tree_masks(draft_trees([[], []], [[], []])) == [None, None]


def test_a_chunk_sees_itself_causally() -> None:
    tree = np.array([[True, False], [True, True]])
    assert below_chunk(tree, 3).tolist() == np.tri(4, dtype=bool).tolist()
    assert below_chunk(np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=bool), 2).astype(int).tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [1, 1, 0, 1],
    ]


def test_paths_are_the_tokens_below_the_root() -> None:
    trees = draft_trees([[0], [0, 1, 0]], [[3], [4, 5, 6]])
    assert tree_paths(trees, 0) == [[], [3]]
    assert tree_paths(trees, 1) == [[], [4], [4, 5], [6]]
