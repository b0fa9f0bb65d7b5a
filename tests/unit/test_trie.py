"""The laws of the draft trie, one case each; the interleavings are in the property tests."""

import math

import pytest

from specedge.errors import ProtocolError
from specedge.node_store import NodeStore
from specedge.trie import DEAD, ROOT, DraftTrie, anchor_at

PROMPT = [10, 11, 12]


def make_trie(max_live_nodes: int = 100) -> DraftTrie:
    return DraftTrie(PROMPT, max_live_nodes=max_live_nodes)


def grown() -> DraftTrie:
    """Two children of the frontier, the first with two children of its own.

    frontier ─ 0 (token 1) ─ 2 (token 3)
            │             └─ 3 (token 4)
            └ 1 (token 2)
    """
    trie = make_trie()
    trie.add(trie.frontier, 1, -0.5)
    trie.add(trie.frontier, 2, -1.0)
    trie.add(0, 3, -0.75)
    trie.add(0, 4, -2.0)
    return trie


def test_nodes_are_numbered_by_arrival_and_know_their_place() -> None:
    trie = grown()
    assert (trie.num_nodes, trie.num_live, trie.num_committed) == (4, 4, 3)
    assert trie.frontier == anchor_at(2)
    assert [trie.token(n) for n in range(4)] == [1, 2, 3, 4]
    assert [trie.parent(n) for n in range(4)] == [ROOT, ROOT, 0, 0]
    assert [trie.position(n) for n in range(4)] == [3, 3, 4, 4]
    assert [trie.depth(n) for n in range(4)] == [1, 1, 2, 2]
    assert trie.children(ROOT) == {1: 0, 2: 1}
    assert trie.children(0) == {3: 2, 4: 3}
    assert trie.children(3) == {}
    assert trie.path(3) == [0, 3]
    assert trie.live_numbers() == [0, 1, 2, 3]


def test_the_prompt_is_copied() -> None:
    prompt = list(PROMPT)
    trie = DraftTrie(prompt, max_live_nodes=1)
    trie.commit([7])
    assert prompt == PROMPT
    assert trie.committed == [*PROMPT, 7]


def test_children_of_older_positions_are_committed_or_dead() -> None:
    trie = make_trie()
    right = trie.add(anchor_at(0), 11, -0.1)
    wrong = trie.add(anchor_at(0), 12, -0.1)
    assert trie.canonical(right) == anchor_at(1)
    assert trie.canonical(wrong) == DEAD
    assert trie.num_live == 0
    assert trie.is_live(trie.add(trie.add(right, 12, -0.2), 5, -0.3))
    assert not trie.is_live(trie.add(wrong, 12, -0.2))


def test_a_repeated_node_is_an_alias_for_good() -> None:
    trie = grown()
    alias = trie.add(0, 3, -0.9)
    assert alias == 4
    assert trie.canonical(alias) == 2
    assert (trie.num_nodes, trie.num_live) == (5, 4)
    assert trie.score(alias) == trie.score(2) == -0.75
    below = trie.add(alias, 8, -1.0)
    assert trie.parent(below) == 2
    assert trie.children(alias) == {8: below}
    trie.commit([1, 3])
    assert trie.canonical(alias) == anchor_at(4)
    assert trie.is_live(trie.add(alias, 9, -1.0))
    trie.commit([5])
    assert not trie.is_live(below)
    assert trie.canonical(trie.add(alias, 5, -1.0)) == anchor_at(5)


def test_an_anchored_repeat_of_a_committed_path_is_an_alias_too() -> None:
    trie = grown()
    trie.commit([1])
    assert trie.canonical(trie.add(trie.add(anchor_at(2), 1, -0.5), 3, -0.75)) == 2


def test_an_alias_of_a_dead_node_is_dead() -> None:
    trie = grown()
    alias = trie.add(0, 3, -0.1)
    trie.commit([2])
    assert trie.canonical(alias) == DEAD
    assert trie.canonical(trie.add(alias, 1, -1.0)) == DEAD


@pytest.mark.parametrize("parent", [4, 5, 1 << 40])
def test_an_unknown_parent_is_a_protocol_error(parent: int) -> None:
    trie = grown()
    with pytest.raises(ProtocolError, match=rf"{parent} is unknown: 4 nodes"):
        trie.add(parent, 1, -0.1)
    assert trie.num_nodes == 4


@pytest.mark.parametrize("position", [3, 1 << 40, ~DEAD])
def test_an_anchor_beyond_the_frontier_is_a_protocol_error(position: int) -> None:
    trie = grown()
    with pytest.raises(ProtocolError, match=rf"anchor {position} is not committed: 3 tokens"):
        trie.add(anchor_at(position), 1, -0.1)
    trie.commit([9])
    assert trie.is_live(trie.add(anchor_at(3), 1, -0.1))


def test_a_commit_keeps_what_hangs_below_it() -> None:
    trie = grown()
    commit = trie.commit([1])
    assert (commit.accepted, commit.dead) == ([0], [1])
    assert trie.committed == [*PROMPT, 1]
    assert trie.live_numbers() == [2, 3]
    assert trie.children(ROOT) == {3: 2, 4: 3}
    assert (trie.parent(2), trie.depth(2), trie.position(2), trie.path(2)) == (ROOT, 1, 4, [2])
    assert trie.canonical(0) == anchor_at(3)
    assert trie.parent(trie.add(0, 6, -1.0)) == ROOT


def test_a_commit_that_leaves_the_trie_kills_all_of_it() -> None:
    trie = grown()
    commit = trie.commit([1, 7, 3])
    assert (commit.accepted, sorted(commit.dead)) == ([0], [1, 2, 3])
    assert trie.num_live == 0
    assert trie.select(10) == []
    fresh = trie.add(trie.frontier, 1, -0.5)
    assert (trie.position(fresh), trie.depth(fresh), trie.parent(fresh)) == (6, 1, ROOT)


def test_an_empty_commit_changes_nothing() -> None:
    trie = grown()
    commit = trie.commit([])
    assert (commit.accepted, commit.dead) == ([], [])
    assert trie.select(10) == [0, 2, 1, 3]


def test_scores_are_conditional_on_the_committed_text() -> None:
    trie = grown()
    assert [trie.score(n) for n in range(4)] == [-0.5, -1.0, -0.75, -2.0]
    trie.commit([1])
    assert [trie.score(n) for n in (2, 3)] == [-0.25, -1.5]
    assert trie.score(0) == trie.score(trie.frontier) == trie.score(anchor_at(0)) == 0.0
    assert trie.score(1) == -math.inf
    assert trie.score(trie.add(2, 5, trie.score(2) - 0.5)) == -0.75


@pytest.mark.parametrize(
    ("score", "expected"), [(-3.0, -3.0), (-0.5, -1.0), (0.0, -1.0), (5.0, -1.0), (math.inf, -1.0)]
)
def test_a_score_never_exceeds_its_parents(score: float, expected: float) -> None:
    trie = make_trie()
    parent = trie.add(trie.frontier, 1, -1.0)
    assert trie.score(trie.add(parent, 2, score)) == expected


@pytest.mark.parametrize("score", [math.nan, -math.inf, -1e300])
def test_worthless_scores_stay_finite_and_come_last(score: float) -> None:
    trie = grown()
    worst = trie.add(trie.frontier, 9, score)
    assert trie.select(10)[-1] == worst
    trie.commit([9])
    child = trie.add(worst, 1, -0.5)
    assert trie.score(child) == -0.5


def test_selection_is_best_first_with_ties_by_number() -> None:
    trie = grown()
    tie = trie.add(trie.frontier, 5, -0.75)
    assert trie.select(10) == [0, 2, tie, 1, 3]
    assert trie.select(2) == [0, 2]
    assert trie.select(0) == []


def test_best_follows_every_change() -> None:
    trie = grown()
    numbers, scores = trie.best(3)
    assert (numbers.tolist(), scores.tolist()) == ([0, 2, 1], [-0.5, -0.75, -1.0])
    assert trie.best(3)[0] is numbers
    assert trie.best(2)[0].tolist() == [0, 2]
    added = trie.add(trie.frontier, 6, -0.6)
    assert trie.best(2)[0].tolist() == [0, added]
    trie.commit([1])
    assert [array.tolist() for array in trie.best(2)] == [[2, 3], [-0.25, -1.5]]
    trie.max_live_nodes = 1
    assert trie.trim() == [3]
    assert trie.best(2)[0].tolist() == [2]
    with pytest.raises(ValueError, match="read-only"):
        trie.best(2)[0][0] = 7


def test_nodes_of_one_message_tell_their_own_step() -> None:
    trie = grown()
    trie.extend([0, 4, trie.frontier, 4], [7, 8, 2, 8], [-0.25, -0.5, -9.0, -0.6])
    assert [trie.canonical(number) for number in range(4, 8)] == [4, 5, 1, 5]
    assert [trie.score(number) for number in (4, 5)] == [-0.75, -1.25]
    trie.commit([1])
    trie.extend([5], [9], [-1.0])
    assert trie.score(8) == -0.75 - 1.0
    with pytest.raises(ProtocolError, match="parent 10 is unknown: 10 nodes"):
        trie.extend([8, 10, 8], [1, 1, 1], [-1.0, -1.0, -1.0])
    assert trie.num_nodes == 10 and trie.path(9) == [4, 5, 8, 9]


def test_the_better_score_of_two_names_counts_for_all_below() -> None:
    trie = DraftTrie(PROMPT, max_live_nodes=8)
    trie.extend([trie.frontier, 0, 1, 0], [1, 2, 3, 4], [-1.0, -0.5, -0.25, -0.125])
    assert trie.select(8) == [0, 3, 1, 2]
    trie.extend([trie.frontier, 0], [1, 2], [-0.5, -0.0625])
    assert [trie.score(number) for number in range(4)] == [-0.5, -0.5625, -0.8125, -0.625]
    assert trie.select(8) == [0, 1, 3, 2]
    trie.add(0, 2, 5.0)
    assert trie.score(1) == trie.score(0) == -0.5, "a child is never better than its parent"
    trie.raise_score(3, 0.125)
    assert trie.score(3) == -0.5


@pytest.mark.parametrize(("score", "worse"), [(-0.3, -0.9), (-0.1, -0.4), (-1e-122, -1.25)])
def test_rounding_puts_no_child_before_its_parent(score: float, worse: float) -> None:
    trie = make_trie()
    trie.add_all([trie.frontier, 0, 1, 0], [1, 2, 3, 2], [score, worse, worse, score])
    assert worse - (worse - score) > score, "the gain as it is rounded would raise the child too far"
    assert [trie.score(number) for number in range(3)] == [score] * 3
    assert trie.select(3) == [0, 1, 2]


def test_tries_share_a_store_and_leave_it_empty() -> None:
    store = NodeStore()
    tries = [DraftTrie(PROMPT, max_live_nodes=8, store=store) for _ in range(5)]
    for round_number in range(20):
        for index, trie in enumerate(tries):
            first = trie.num_nodes
            for token in range(16):
                trie.add(trie.frontier if token < 4 else first + token - 4, token, -0.1 * token)
            trie.trim()
            trie.commit([index % 4, (round_number + index) % 16])
    assert store.num_taken == len(tries) + sum(trie.num_live for trie in tries)
    places = {place for trie in tries for place in (trie.root_place, *trie.live_places)}
    assert len(places) == store.num_taken, "no place belongs to two"
    for trie in tries:
        trie.release()
    assert store.num_taken == 0


def test_trim_drops_the_worst_and_counts_them_dead() -> None:
    trie = make_trie(max_live_nodes=2)
    first = trie.add(trie.frontier, 1, -1.0)
    leaf = trie.add(first, 2, -1.0)
    best = trie.add(trie.frontier, 3, -0.5)
    alias = trie.add(first, 2, -1.0)
    assert trie.trim() == [leaf]
    assert trie.live_numbers() == [first, best]
    assert trie.children(first) == {}
    assert trie.canonical(leaf) == trie.canonical(alias) == DEAD
    assert not trie.is_live(trie.add(leaf, 5, -1.0))
    again = trie.add(first, 2, -1.0)
    assert trie.is_live(again)
    assert trie.trim() == [again]
    assert trie.trim() == []


def test_a_node_that_is_not_live_has_no_place() -> None:
    trie = grown()
    trie.commit([1])
    for number in (0, 1):
        with pytest.raises(KeyError):
            trie.token(number)


def test_a_dead_node_leaves_one_list_entry() -> None:
    trie = make_trie()
    for round_number in range(50):
        for token in range(20):
            trie.add(trie.frontier, token, -1.0)
        trie.select(20)
        trie.commit([round_number % 20, 99])
    assert trie.num_nodes == 1000
    assert trie.num_live == 0
    assert trie._live == {} and trie._children == {} and trie.select(20) == []
    assert trie._store.num_taken == 1, "only the frontier has a place"
