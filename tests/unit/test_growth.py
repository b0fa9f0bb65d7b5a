"""Growth of one trie, on candidates written by hand."""

from math import inf, log

import numpy as np
import pytest

from specedge.drafting.growth import Candidates, GrowthSettings, TreeGrowth, score_bar
from specedge.trie import ROOT, DraftTrie


def candidates(children: dict[int, float]) -> Candidates:
    """Children by token, with their probabilities."""
    best_first = sorted(children.items(), key=lambda item: -item[1])
    return Candidates(
        token_ids=[token for token, _ in best_first],
        log_probs=[log(probability) for _, probability in best_first],
        scores=np.zeros(len(best_first)),
        log_partitions=np.zeros(1),
        is_greedy=True,
    )


def make_growth(budget: int, *, decay: float = 1.0, floor: float = -inf, width: int = 4) -> TreeGrowth:
    trie = DraftTrie([7], max_live_nodes=budget)
    return TreeGrowth(trie, decay=decay, max_branch_width=width, is_final=lambda token, _: token == 0, floor=floor)


def grow_root(growth: TreeGrowth, children: dict[int, float]) -> None:
    growth.attach([(growth.trie.frontier, candidates(children))])


def live_tokens(growth: TreeGrowth) -> list[int]:
    return [growth.trie.token(number) for number in growth.trie.live_numbers()]


def test_bar_is_the_budget_th_best_of_tree_and_children() -> None:
    assert score_bar([-1.0, -4.0], [-2.0, -3.0], 3) == -3.0
    assert score_bar([-1.0], [-2.0], 3) == -inf


def test_child_scores_carry_decay_and_the_parents_score() -> None:
    growth = make_growth(8, decay=0.9)
    grow_root(growth, {1: 0.5})
    growth.attach([(0, candidates({2: 0.25}))])
    assert growth.trie.score(0) == pytest.approx(log(0.9 * 0.5))
    assert growth.trie.score(1) == pytest.approx(log(0.9 * 0.5 * 0.9 * 0.25))


def test_best_children_stay_and_the_worst_nodes_go() -> None:
    growth = make_growth(3)
    grow_root(growth, {1: 0.6, 2: 0.2, 3: 0.1})
    dropped = growth.attach([(0, candidates({4: 0.5, 5: 0.3, 6: 0.05}))])
    assert live_tokens(growth) == [1, 2, 4]
    assert dropped == [2]


def test_width_bounds_the_children_of_a_node() -> None:
    growth = make_growth(8, width=2)
    grow_root(growth, {1: 0.5, 2: 0.3, 3: 0.2})
    assert live_tokens(growth) == [1, 2]


def test_choice_is_best_first_and_never_twice() -> None:
    growth = make_growth(8)
    grow_root(growth, {1: 0.2, 2: 0.7, 3: 0.1})
    assert [number for _, number in growth.choose(2)] == [0, 1]
    assert growth.trie.token(0) == 2
    growth.begin([0])
    assert [number for _, number in growth.choose(2)] == [1, 2]


def test_growth_ends_when_nothing_unexpanded_could_beat_a_full_tree() -> None:
    growth = make_growth(2, decay=0.9)
    grow_root(growth, {1: 0.51, 2: 0.49})
    assert growth.choose(8) == []  # 0.51 x 0.9 is below 0.49
    growth = make_growth(2, decay=0.9)
    grow_root(growth, {1: 0.6, 2: 0.4})
    assert [number for _, number in growth.choose(8)] == [0]


def test_an_exhausted_tree_grows_again_after_a_commit_and_under_other_settings() -> None:
    growth = make_growth(2, decay=0.9)
    grow_root(growth, {1: 0.51, 2: 0.49})
    assert growth.choose(8) == growth.choose(8) == []
    growth.retarget(GrowthSettings(decay=0.99), 3)
    assert [number for _, number in growth.choose(8)] == [0, 1]
    growth = make_growth(2, decay=0.9)
    grow_root(growth, {1: 0.51, 2: 0.49})
    assert growth.choose(8) == []
    growth.attach([(0, candidates({3: 0.9, 4: 0.05}))])
    growth.commit([1])
    growth.reconsider()
    assert [growth.trie.token(number) for _, number in growth.choose(8)] == [3]  # 0.05 x 0.9 is below 4


def test_nothing_below_the_floor_is_kept_or_expanded() -> None:
    growth = make_growth(8, decay=0.9, floor=log(0.2))
    grow_root(growth, {1: 0.5, 2: 0.23, 3: 0.1})
    assert live_tokens(growth) == [1, 2]
    assert [number for _, number in growth.choose(8)] == [0]  # below node 1 nothing could reach 0.2


def test_final_tokens_are_kept_but_not_expanded() -> None:
    growth = make_growth(8)
    grow_root(growth, {0: 0.6, 1: 0.4})
    assert live_tokens(growth) == [0, 1]
    assert [growth.trie.token(number) for _, number in growth.choose(8)] == [1]


def test_results_follow_their_node_through_a_commit() -> None:
    growth = make_growth(8)
    grow_root(growth, {1: 0.6, 2: 0.4})
    growth.begin([0, 1])
    growth.commit([1])
    growth.attach([(0, candidates({3: 0.5})), (1, candidates({4: 0.5}))])
    assert live_tokens(growth) == [3]  # node 0 is the root now; node 1 died while it was expanded
    assert growth.trie.score(2) == pytest.approx(log(0.5))
    assert growth.num_late == 1


def test_a_verdict_makes_rejected_candidates_worth_keeping() -> None:
    growth = make_growth(8, floor=log(0.1))
    grow_root(growth, {1: 0.3})
    growth.attach([(0, candidates({2: 0.8, 3: 0.2}))])
    assert live_tokens(growth) == [1, 2]
    growth.commit([1])
    assert growth.reconsider() == []
    assert sorted(live_tokens(growth)) == [2, 3]


def test_evidence_is_what_expanded_nodes_said_of_committed_tokens() -> None:
    growth = make_growth(8)
    root, child = candidates({1: 0.6, 2: 0.4}), candidates({3: 0.5})
    growth.attach([(growth.trie.frontier, root)])
    growth.attach([(0, child)])
    commit, evidence = growth.commit([1, 9, 9])
    assert commit.accepted == [0]
    assert evidence == [(root, 1), (child, 9)]


def test_best_continuation_is_the_most_probable_leaf_and_next_token() -> None:
    growth = make_growth(3)
    grow_root(growth, {1: 0.6, 2: 0.3, 3: 0.1})
    assert [number for _, number in growth.unexpanded_leaves(2)] == [0, 1]
    growth.begin([0, 1])
    growth.remember([(0, candidates({4: 0.3, 5: 0.2})), (1, candidates({6: 0.9}))])
    assert growth.best_continuation() == (1, 6)  # 0.3 x 0.9 against 0.6 x 0.3
    assert live_tokens(growth) == [1, 2, 3]


def test_a_grafted_chain_may_be_expanded_parents_first_and_shares_nodes_that_are_there() -> None:
    growth = make_growth(8, decay=0.9)
    grow_root(growth, {1: 0.6, 2: 0.2})
    growth.begin([0])
    growth.fresh.clear()
    growth.graft(ROOT, [1, 3, 4], [log(0.5), log(0.8), log(0.7)])
    assert live_tokens(growth) == [1, 2, 3, 4]
    assert growth.fresh == [2, 3], "the shared node keeps the better score it had"
    assert growth.trie.score(2) == pytest.approx(log(0.9 * 0.6 * 0.8))
    chosen = [number for _, number in growth.choose(8)]
    assert chosen == [2, 3, 1]
    growth.attach([(0, candidates({3: 0.1, 5: 0.5}))])
    assert growth.trie.score(2) == pytest.approx(log(0.9 * 0.6 * 0.8))


def test_the_better_of_two_scores_counts_for_all_below_and_is_told_again() -> None:
    growth = make_growth(8, decay=0.9)
    grow_root(growth, {1: 0.1})
    growth.attach([(0, candidates({2: 0.5}))])
    growth.fresh.clear()
    growth.graft(ROOT, [1], [log(0.9)])
    assert growth.fresh == [0]
    assert growth.trie.score(0) == pytest.approx(log(0.9))
    assert growth.trie.score(1) == pytest.approx(log(0.9 * 0.9 * 0.5))
    growth.graft(ROOT, [3, 4], [log(0.05), log(0.9)])
    growth.fresh.clear()
    growth.attach([(growth.trie.frontier, candidates({3: 0.6}))])  # the draft model thinks better of it
    assert growth.trie.score(3) == pytest.approx(log(0.9 * 0.6 * 0.9))
    assert 2 in growth.fresh


def test_rounding_puts_no_child_before_its_parent() -> None:
    growth = make_growth(8)
    growth.graft(ROOT, [1, 2], [-0.3, -2.4776444408594736])
    growth.graft(ROOT, [1, 2], [-0.3, 0.0])
    assert [growth.trie.score(number) for number in (0, 1)] == [-0.3, -0.3]
    assert [number for _, number in growth.choose(8)] == [0, 1]


def test_a_graft_keeps_to_budget_and_floor_and_ends_where_nothing_follows() -> None:
    growth = make_growth(3, floor=log(0.1))
    assert growth.graft(ROOT, [1, 2, 3, 4], [log(0.5)] * 4) == []
    assert live_tokens(growth) == [1, 2, 3]  # 1 / 16 is below the floor
    assert growth.graft(ROOT, [5], [log(0.6)]) == [2]
    assert live_tokens(growth) == [1, 2, 5]
    final = make_growth(8)
    final.graft(ROOT, [1, 0], [log(0.9)] * 2)
    assert [number for _, number in final.choose(8)] == [0]
