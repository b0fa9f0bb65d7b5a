"""Trees of a step: parents first, the most probable path leading, and nothing mixed up between sessions."""

from random import Random

import numpy as np
import pytest

from specedge.node_store import NodeStore
from specedge.trie import DraftTrie
from specedge_verifier.draft_trees import DraftTrees, bare_roots, lay_out


def chosen_trees(tries: list[DraftTrie], store: NodeStore, limit: int) -> DraftTrees:
    places, sizes = store.rank([trie.live_places for trie in tries], limit)
    owners = np.repeat(np.arange(len(tries)), sizes)
    roots = [trie.root_place for trie in tries]
    return lay_out(store, roots, places, store.losses[roots][owners] - store.losses[places], sizes)


def rows_by_hand(trie: DraftTrie, limit: int) -> list[int]:
    """The chosen nodes in row order, from the trie's own methods."""
    best = trie.select(limit)
    path: list[int] = []
    while below := [number for number in best if trie.parent(number) == (path[-1] if path else -1)]:
        path.append(below[0])
    return path + [number for number in best if number not in path]


def grow(trie: DraftTrie, draw: Random, num_nodes: int) -> None:
    for _ in range(num_nodes):
        live = trie.live_numbers()
        parent = draw.choice([trie.frontier, *live]) if draw.random() < 0.5 or not live else live[-1]
        trie.extend([parent], [draw.randrange(4)], [-draw.randrange(8) / 4])


@pytest.mark.parametrize("seed", range(10))
def test_trees_are_what_each_trie_says(seed: int) -> None:
    draw = Random(seed)
    store = NodeStore()
    tries = [DraftTrie([1, 2, 3][: 1 + index % 3], max_live_nodes=100, store=store) for index in range(6)]
    for _ in range(3):
        for index, trie in enumerate(tries):
            grow(trie, draw, (0, 1, 30)[(index + seed) % 3])
        limit = draw.choice([4, 12, 100])
        trees = chosen_trees(tries, store, limit)
        assert trees.num_rows == sum(trees.sizes) + len(tries)
        first, depth = 0, 0
        for index, trie in enumerate(tries):
            numbers = rows_by_hand(trie, limit)
            nodes = slice(first, first + len(numbers))
            root = int(trees.roots[index])
            assert trees.sizes[index] == len(numbers) and root == first + index
            assert trees.rows[nodes].tolist() == list(range(root + 1, root + 1 + len(numbers)))
            row_of = {-1: root, **{number: root + row for row, number in enumerate(numbers, start=1)}}
            assert trees.parents[nodes].tolist() == [row_of[trie.parent(number)] for number in numbers]
            assert trees.token_ids[nodes].tolist() == [trie.token(number) for number in numbers]
            assert trees.positions[nodes].tolist() == [trie.position(number) for number in numbers]
            assert trees.scores[nodes].tolist() == [trie.score(number) for number in numbers]
            depth = max([depth, *(trie.depth(number) for number in numbers)])
            first += len(numbers)
        assert trees.depth == depth
        for trie in tries:
            live = trie.live_numbers()
            path = [trie.token(number) for number in trie.path(draw.choice(live))] if live else []
            trie.commit([*path[: draw.randrange(3)], draw.randrange(4)])


def test_roots_alone() -> None:
    trees = bare_roots(3)
    assert (trees.num_rows, trees.roots.tolist(), trees.depth) == (3, [0, 1, 2], 0)
    store = NodeStore()
    tries = [DraftTrie([1], max_live_nodes=4, store=store) for _ in range(2)]
    assert chosen_trees(tries, store, 4).roots.tolist() == [0, 1]


def test_a_full_store_grows_and_keeps_what_it_holds() -> None:
    store = NodeStore()
    trie = DraftTrie([1], max_live_nodes=1000, store=store)
    before = store.capacity
    trie.extend([-1, *range(300)], [7] * 301, [-0.25] * 301)
    assert store.capacity > before and store.num_taken == 302
    assert trie.path(300) == list(range(301)) and trie.score(300) == -0.25 * 301
    assert store.tokens[list(trie.live_places)].tolist() == [7] * 301
