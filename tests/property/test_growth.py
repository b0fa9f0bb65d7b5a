"""Best-first growth finds the best nodes of the whole tree, whatever the beam width, and again after every commit."""

from functools import cache
from math import inf, isinf, log

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from specedge.drafting.growth import Candidates, TreeGrowth
from specedge.trie import ROOT, DraftTrie

DECAY = 0.9
WIDTH = 3
MAX_POSITION = 6  # of the deepest nodes; the prompt is one token


class RandomModel:
    """A next-token distribution that depends on the whole path; probabilities of different nodes never tie."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.children = cache(self._children)

    def _children(self, path: tuple[int, ...]) -> list[tuple[int, float]]:
        rng = np.random.default_rng([self._seed, len(path), *path])
        probabilities = rng.dirichlet(np.full(WIDTH + 1, 0.7))[:WIDTH]
        ranked = sorted(enumerate(np.log(probabilities).tolist()), key=lambda pair: -pair[1])
        return [(token, log_prob) for token, log_prob in ranked if not isinf(log_prob)]

    def candidates(self, path: tuple[int, ...]) -> Candidates:
        tokens, log_probs = zip(*self.children(path), strict=True)
        return Candidates(list(tokens), list(log_probs), np.zeros(len(tokens)), np.zeros(1), is_greedy=False)

    def best(self, text: tuple[int, ...], budget: int, floor: float) -> set[tuple[int, ...]]:
        """The best `budget` paths after a text, by exhaustive search."""
        level, found = [(0.0, text)], []
        for _ in range(len(text), MAX_POSITION + 1):
            level = [
                (score + log(DECAY) + log_prob, (*path, token))
                for score, path in level
                for token, log_prob in self.children(path)
            ]
            found += level
        kept = sorted((item for item in found if item[0] >= floor), reverse=True)[:budget]
        return {path[len(text) :] for _, path in kept}


def grow(growth: TreeGrowth, model: RandomModel, beams: int) -> None:
    """Expands until nothing is worth it."""
    text = tuple(growth.trie.committed)
    while chosen := [number for _, number in growth.choose(beams)]:
        growth.begin(chosen)
        paths = [tuple(growth.trie.token(node) for node in growth.trie.path(number)) for number in chosen]
        growth.attach([(n, model.candidates(text + path)) for n, path in zip(chosen, paths, strict=True)])


def check_nodes(growth: TreeGrowth) -> None:
    """What growth keeps of the live nodes is what the trie knows of them, in its order."""
    trie = growth.trie
    assert list(growth.nodes) == trie.select(trie.num_live)
    for number, (loss, same, parent, token, position) in growth.nodes.items():
        assert same == number
        assert growth.root_loss - loss == trie.score(number)
        assert (parent if parent in growth.nodes else ROOT) == trie.parent(number)
        assert (token, position) == (trie.token(number), trie.position(number))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    budget=st.integers(1, 20),
    beams=st.integers(1, 8),
    floor=st.sampled_from([-inf, log(0.2), log(0.02)]),
    picks=st.lists(st.integers(0, WIDTH), max_size=4),
)
def test_growth_finds_the_best_nodes(seed: int, budget: int, beams: int, floor: float, picks: list[int]) -> None:
    model = RandomModel(seed)
    trie = DraftTrie([0], max_live_nodes=budget)
    growth = TreeGrowth(
        trie,
        decay=DECAY,
        max_branch_width=WIDTH,
        is_final=lambda _, position: position >= MAX_POSITION,
        floor=floor,
    )
    for token in [None, *picks]:
        if token is not None:
            growth.commit([token])
            growth.reconsider()
        check_nodes(growth)
        text = tuple(trie.committed)
        if not growth.is_expanded(ROOT):
            growth.attach([(trie.frontier, model.candidates(text))])
        grow(growth, model, beams)
        check_nodes(growth)
        live = {tuple(trie.token(node) for node in trie.path(number)) for number in trie.live_numbers()}
        assert live == model.best(text, budget, floor)
