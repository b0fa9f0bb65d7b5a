"""The walk commits exactly what the target would have written by itself."""

import random
from collections.abc import Sequence

import pytest
from draft_trees import draft_trees
from hypothesis import given
from hypothesis import strategies as st

from specedge_verifier.acceptance import Walk, walk

VOCABULARY = 3
MAX_DEPTH = 6


@pytest.mark.parametrize(
    ("parents", "tokens", "sampled", "expected"),
    [
        pytest.param([-1], [9], [4], Walk([], [4]), id="root-only"),
        pytest.param([-1, 0], [9, 4], [5, 6], Walk([], [5]), id="no-match"),
        pytest.param([-1, 0], [9, 5], [5, 6], Walk([1], [5, 6]), id="one-match"),
        pytest.param([-1, 0, 1, 2], [9, 1, 2, 3], [1, 2, 3, 4], Walk([1, 2, 3], [1, 2, 3, 4]), id="whole-chain"),
        pytest.param([-1, 0, 1, 2], [9, 1, 7, 3], [1, 2, 3, 4], Walk([1], [1, 2]), id="broken-chain-stays-broken"),
        pytest.param([-1, 0, 0, 0], [9, 1, 2, 3], [2, 8, 9, 8], Walk([2], [2, 9]), id="second-sibling"),
        pytest.param([-1, 0, 0, 1, 2], [9, 1, 2, 5, 5], [2, 5, 5, 8, 7], Walk([2, 4], [2, 5, 7]), id="cousins"),
        pytest.param(
            [-1, 0, 1, 0, 3], [9, 1, 5, 2, 6], [2, 5, 8, 6, 7], Walk([3, 4], [2, 6, 7]), id="depth-first-rows"
        ),
    ],
)
def test_walk(parents: list[int], tokens: list[int], sampled: list[int], expected: Walk) -> None:
    assert walk(draft_trees([parents[1:]], [tokens[1:]]), sampled) == [expected]


def test_trees_are_walked_each_by_itself() -> None:
    trees = draft_trees([[0, 1], [], [0, 0, 2]], [[5, 6], [], [7, 8, 5]])
    walks = walk(trees, [5, 6, 1, 5, 8, 9, 5, 4])
    assert walks == [Walk([1, 2], [5, 6, 1]), Walk([], [5]), Walk([2, 3], [8, 5, 4])]


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Parents and tokens of a random tree whose siblings differ."""
    parents, tokens, depths, taken = [-1], [0], [0], set()
    for _ in range(draw(st.integers(0, 30))):
        parent = draw(st.sampled_from([row for row, depth in enumerate(depths) if depth < MAX_DEPTH]))
        token = draw(st.integers(0, VOCABULARY - 1))
        if (parent, token) not in taken:
            taken.add((parent, token))
            parents.append(parent)
            tokens.append(token)
            depths.append(depths[parent] + 1)
    return parents, tokens


def path_of(row: int, parents: Sequence[int], tokens: Sequence[int]) -> tuple[int, ...]:
    path: tuple[int, ...] = ()
    while row:
        path = (tokens[row], *path)
        row = parents[row]
    return path


@given(trees(), st.randoms(use_true_random=False))
def test_walk_equals_sequential_decoding(tree: tuple[list[int], list[int]], source: random.Random) -> None:
    parents, tokens = tree
    drawn: dict[tuple[int, ...], int] = {}

    def target(path: tuple[int, ...]) -> int:
        """A fixed but arbitrary function of the path; a small vocabulary, so that drafts are often right."""
        return drawn.setdefault(path, source.randrange(VOCABULARY))

    paths = [path_of(row, parents, tokens) for row in range(len(parents))]
    (result,) = walk(draft_trees([parents[1:]], [tokens[1:]]), [target(path) for path in paths])

    decoded: tuple[int, ...] = ()
    rows = []
    while decoded in paths:
        rows.append(paths.index(decoded))
        decoded = (*decoded, target(decoded))
    assert result.tokens == list(decoded)
    assert result.rows == rows[1:]
