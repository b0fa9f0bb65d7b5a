"""What is looked up for one answer, and what it is taken to be worth."""

from collections.abc import Sequence
from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specedge.drafting.followed_grammar import FollowedGrammar
from specedge.drafting.lookup import MAX_CHAIN, MIN_PATH_PROBABILITY, SessionLookup
from specedge.drafting.lookup_acceptance import LookupAcceptance, SessionAcceptance
from specedge.drafting.ngram_index import MAX_MATCH

END = 0


def make(
    prompt: Sequence[int], prediction: Sequence[int] = (), acceptance: LookupAcceptance | None = None
) -> SessionLookup:
    acceptance = acceptance or LookupAcceptance()
    return SessionLookup(
        prompt, len(prompt), 400, prediction, acceptance, lambda token, _: token == END, FollowedGrammar()
    )


def proposed(lookup: SessionLookup, source: str) -> list[int]:
    return next((chain.token_ids for chain in lookup.chains() if chain.source == source), [])


def begins(chain: list[int], expected: list[int]) -> bool:
    """Whether a chain says this, as far as both go; it must say something."""
    return bool(chain) and chain == expected[: len(chain)]


def test_what_followed_the_same_tokens_is_proposed() -> None:
    lookup = make([5, 6, 7, 8, 9, 3, 5, 6])
    assert begins(proposed(lookup, "lookup"), [7, 8, 9, 3, 5, 6])
    lookup.commit([7, 8, 4])
    assert proposed(make([1, 2, 3]), "lookup") == []


def test_of_several_places_the_longest_agreement_counts_then_the_latest() -> None:
    assert proposed(make([1, 2, 3, 7, 9, 2, 3, 8, 5, 1, 2, 3]), "lookup")[0] == 7
    assert proposed(make([2, 3, 7, 9, 2, 3, 8, 5, 2, 3]), "lookup")[0] == 8


def test_a_text_that_repeats_itself_goes_on_from_its_own_end() -> None:
    lookup = make([4, 1, 2, 3])
    lookup.commit([1, 2, 3] * 20)
    chain = proposed(lookup, "lookup")
    assert begins(chain, [1, 2, 3] * 30)
    assert len(chain) > 6


def test_chains_end_where_nothing_can_follow_or_hardly_anything_is_left() -> None:
    prompt = [7, 8, 1, 2, END, 3, 7, 8]
    lookup = make(prompt, acceptance=certain())
    assert proposed(lookup, "lookup") == [1, 2, END]
    chain = make([*range(1, 200), 1, 2], acceptance=certain()).chains()[0]
    assert len(chain.token_ids) <= MAX_CHAIN
    assert exp(sum(chain.log_probs)) >= MIN_PATH_PROBABILITY
    assert all(log_prob < 0 for log_prob in chain.log_probs)


def certain() -> LookupAcceptance:
    acceptance = LookupAcceptance()
    for length in range(MAX_MATCH + 1):
        for _ in range(400):
            acceptance.observe("lookup", length, True)
    return acceptance


def test_a_prediction_is_followed_from_its_beginning_and_again_after_an_edit() -> None:
    prediction = list(range(10, 60))
    lookup = make([1, 2, 3], prediction)
    assert begins(proposed(lookup, "prediction"), prediction)
    lookup.commit(prediction[:20])
    assert len(proposed(lookup, "prediction")) > 10
    lookup.commit([99, 31])  # one token exchanged: it goes on at the same place
    assert begins(proposed(lookup, "prediction"), prediction[22:])
    lookup.commit([90, 91, 92, 93, 32, 33])  # tokens inserted: the last two are found again
    assert begins(proposed(lookup, "prediction"), prediction[24:])
    lookup.commit(prediction[50:52])
    assert lookup.chain_after([45, 46]) is not None
    lookup.commit(prediction[10:-2])
    assert proposed(lookup, "prediction") == prediction[-2:]
    lookup.commit(prediction[-2:])
    assert proposed(lookup, "prediction") == [], "nothing follows the end of a prediction"


def test_a_draft_path_is_looked_up_with_its_own_last_tokens() -> None:
    lookup = make([5, 6, 7, 8, 9, 3, 5])
    chain = lookup.chain_after([4, 6, 7])
    assert chain is not None and begins(chain.token_ids, [8, 9, 3, 5, 4, 6, 7])
    across = lookup.chain_after([6])  # the last committed token and the first of the path
    assert across is not None and begins(across.token_ids, [7, 8, 9, 3, 5, 6])
    assert lookup.chain_after([9, 9]) is None


def test_a_source_that_is_never_right_soon_proposes_nothing() -> None:
    lookup = make([1, 2, 1, 3])
    for index in range(60):  # the same pair, followed by something else every time
        lookup.commit([1, 2, 100 + index])
    lookup.commit([1, 2])
    assert proposed(lookup, "lookup") == []


@given(
    prompt=st.lists(st.integers(1, 3), min_size=1, max_size=30),
    answer=st.lists(st.integers(1, 3), max_size=40),
    prediction=st.lists(st.integers(1, 3), max_size=30),
    cuts=st.lists(st.integers(1, 5), max_size=40),
)
def test_drafts_depend_on_the_text_alone(
    prompt: list[int], answer: list[int], prediction: list[int], cuts: list[int]
) -> None:
    """However verdicts cut an answer, and wherever a session begins, the same is known after it."""
    at_once, by_cuts = make(prompt, prediction), make(prompt, prediction)
    at_once.commit(answer)
    rest = answer
    for cut in cuts:
        by_cuts.commit(rest[:cut])
        rest = rest[cut:]
    by_cuts.commit(rest)
    assert at_once.chains() == by_cuts.chains()
    resumed = SessionLookup(
        prompt + answer, len(prompt), 400, prediction, LookupAcceptance(), lambda token, _: False, FollowedGrammar()
    )
    assert resumed.chains() == at_once.chains()


def test_worth_is_measured_per_source_and_agreement_and_per_session() -> None:
    shared = LookupAcceptance()
    session, other = SessionAcceptance(shared, "lookup"), SessionAcceptance(shared, "lookup")
    before = other.probability(3)
    for index in range(400):
        session.observe(3, index % 4 != 0)
    assert session.probability(3) == pytest.approx(0.75, abs=0.03)
    assert other.probability(3) == pytest.approx(0.75, abs=0.03) != before
    assert SessionAcceptance(shared, "prediction").probability(3) == SessionAcceptance(
        LookupAcceptance(), "prediction"
    ).probability(3)
    for _ in range(8):
        other.observe(3, False)
    assert other.probability(3) < 0.3 < session.probability(3)
    assert session.probability(MAX_MATCH + 10) == session.probability(MAX_MATCH)
