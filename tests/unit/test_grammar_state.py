import numpy as np
import pytest
from grammar_support import EOS, VOCAB_SIZE, allowed, compiled, ids

from specedge.grammar.hold_back import hold_back

IM_START = 1  # special, and no end-of-sequence token


def token(text: str) -> int:
    (only,) = ids(text)
    return only


def test_the_end_is_allowed_exactly_where_the_grammar_may_end() -> None:
    state = compiled("regex", "a(b?)").start()
    masks = state.masks([0, 1, 2], [token("a"), token("b"), EOS])
    assert token("a") in allowed(masks[0])
    assert EOS not in allowed(masks[0])
    assert allowed(masks[1]) == {token("b"), EOS}
    assert allowed(masks[2]) == {EOS}
    assert (masks[3] == -1).all()
    hold_back(masks, np.array([False, True, True, True]), [EOS, token("a")])
    assert token("a") in allowed(masks[0])
    assert allowed(masks[1]) == {token("b")}
    assert allowed(masks[2]) == {EOS}  # nothing else is allowed
    assert not {EOS, token("a")} & allowed(masks[3])


def test_a_refused_node_and_what_is_below_it_allow_everything_and_siblings_are_not_harmed() -> None:
    state = compiled("regex", "[ab]*c").start()
    a, c, z = token("a"), token("c"), token("z")
    masks = state.masks([0, 1, 0, 3, 0], [z, a, a, c, -5])
    assert (masks[[1, 2, 5]] == -1).all()
    assert allowed(masks[3]) == allowed(masks[0])
    assert allowed(masks[4]) == {EOS}


def test_masks_and_questions_leave_the_state_as_it_was() -> None:
    state = compiled("json_schema", {"type": "array", "items": {"type": "integer"}}).start()
    before = state.masks([], []).copy()
    state.masks([0, 1, 2], [*ids("[1"), EOS])
    state.allows(ids("[1, 2]"), [EOS])
    state.allows([*ids("[1, 2]"), EOS, EOS], [EOS])
    assert (state.masks([], []) == before).all()


def test_allows_asks_after_a_path_of_uncommitted_tokens() -> None:
    state = compiled("choice", ["ab", "ac", "b"]).start()
    a, b, c = token("a"), token("b"), token("c")
    assert state.allows([], [a, b, c, EOS]).tolist() == [True, True, False, False]
    assert state.allows([a], [a, b, c, EOS]).tolist() == [False, True, True, False]
    assert state.allows([b], [EOS, VOCAB_SIZE, -1]).tolist() == [True, False, False]
    assert state.allows([c], [a, b]).tolist() == [False, False]
    assert state.allows([b, EOS], [EOS]).tolist() == [False]
    assert state.accept([a]) == 1
    assert state.allows([], [b, c]).tolist() == [True, True]


def test_num_admitted_counts_the_tokens_that_may_follow_a_path_one_after_the_other() -> None:
    state = compiled("choice", ["ab", "ac", "b"]).start()
    a, b, c = token("a"), token("b"), token("c")
    assert state.num_admitted([], [a, c, EOS, a]) == 3
    assert state.num_admitted([], [a, a]) == 1
    assert state.num_admitted([a], [b, EOS]) == 2
    assert state.num_admitted([c], [a]) == 0 == state.num_admitted([b, EOS], [b])
    assert state.num_admitted([b], [VOCAB_SIZE]) == 0 == state.num_admitted([b], [-1])
    assert allowed(state.row_after([a])) == {b, c}
    assert {a, b} <= allowed(state.row_after([])) and c not in allowed(state.row_after([]))
    assert not state.row_after([c]).any() and not state.row_after([b, EOS]).any()
    assert state.accept([a]) == 1, "the state is where it was"


def test_a_path_without_a_way_on_is_stuck_and_its_tokens_are_not_taken() -> None:
    state = compiled("ebnf", 'root ::= "a" dead | "b"\ndead ::= [^\\u0000-\\U0010ffff]').start()
    masks = state.masks([0, 0], [token("a"), token("b")])
    assert not masks[1].any()
    assert not state.is_stuck
    assert state.accept([token("a"), 0, 0]) == 1
    assert state.is_stuck
    assert not state.is_ended


def test_special_tokens_are_not_text() -> None:
    for kind, source in (("regex", "[^x]*"), ("ebnf", r"root ::= [\x00-\U0010ffff]*"), ("json_object", "")):
        state = compiled(kind, source).start()
        masks = state.masks([0, 1], ids('{"'))
        assert not {0, IM_START} & set.union(*map(allowed, masks))


def test_a_structural_tag_can_name_a_special_token() -> None:
    elements = [{"type": "token", "token": IM_START}, {"type": "const_string", "value": "a"}]
    state = compiled(
        "structural_tag", {"type": "structural_tag", "format": {"type": "sequence", "elements": elements}}
    ).start()
    assert allowed(state.masks([], [])[0]) == {IM_START}
    assert state.accept([IM_START, token("a"), EOS]) == 3


def test_special_stop_tokens_end_the_answer_where_the_grammar_may_end() -> None:
    grammar = compiled("regex", "ab")
    state = grammar.start(stop_token_ids=[IM_START])
    assert not state.allows([], [IM_START]).any()
    assert state.allows([token("a"), token("b")], [IM_START, EOS]).all()
    assert state.accept([token("a"), token("b"), IM_START]) == 3
    assert state.is_ended


def test_textual_stop_tokens_stay_text() -> None:
    state = compiled("regex", "ab").start(stop_token_ids=[token("a")])
    assert state.allows([], [token("a")]).all()
    assert not state.allows([token("a"), token("b")], [token("a")]).any()


@pytest.mark.parametrize("seed", range(3))
def test_a_trees_masks_are_those_of_fresh_states_along_each_path(seed: int) -> None:
    grammar = compiled("json_object")
    committed = ids('{"key": [1, "')
    state = grammar.start()
    assert state.accept(committed) == len(committed)
    rng = np.random.default_rng(seed)
    parents, tokens, paths = [], [], [[]]
    for _ in range(24):
        parent = int(rng.integers(len(paths)))
        probe = grammar.start()
        probe.accept([*committed, *paths[parent]])
        options = sorted(allowed(probe.masks([], [])[0]) - {EOS}) or [EOS]
        parents.append(parent)
        tokens.append(int(rng.choice(options)))
        paths.append([*paths[parent], tokens[-1]])
    masks = state.masks(np.array(parents), np.array(tokens))
    for path, mask in zip(paths, masks, strict=True):
        fresh = grammar.start()
        assert fresh.accept([*committed, *path]) == len(committed) + len(path)
        assert (fresh.masks([], [])[0] == mask).all()
