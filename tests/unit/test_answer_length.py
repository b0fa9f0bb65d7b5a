"""What answers still get, from those that have ended."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specedge_verifier.answer_length import AnswerLengths

ENDED = st.lists(st.tuples(st.integers(0, 200), st.booleans()), max_size=60)


def remaining(lengths: AnswerLengths, num_generated: int, max_tokens: int) -> float:
    return float(lengths.remaining([num_generated], [max_tokens])[0])


def test_before_any_has_ended_and_where_all_are_cut_answers_reach_their_limit() -> None:
    lengths = AnswerLengths()
    assert remaining(lengths, 30, 100) == 70
    for max_tokens in (64, 200, 100):
        lengths.observe(max_tokens, is_cut=True)
    assert remaining(lengths, 30, 100) == 70


def test_answers_that_end_by_themselves_are_expected_to() -> None:
    lengths = AnswerLengths()
    for _ in range(200):
        lengths.observe(50, is_cut=False)
    assert remaining(lengths, 0, 4000) == pytest.approx(50 + 3950 / 201)
    assert remaining(lengths, 40, 4000) == pytest.approx(10 + 3950 / 201)
    assert remaining(lengths, 0, 20) == 20, "no further than allowed"
    assert remaining(lengths, 60, 100) == pytest.approx(40), (
        "one that is longer than all that were seen may be any length"
    )


def test_a_mixture_is_the_mean_of_those_that_became_longer() -> None:
    lengths = AnswerLengths()
    for _ in range(100):
        lengths.observe(10, is_cut=False)
        lengths.observe(110, is_cut=False)
    assert remaining(lengths, 0, 111) == pytest.approx(60, abs=1)
    assert remaining(lengths, 20, 111) == pytest.approx(90, abs=1)


@given(ended=ENDED, num_generated=st.integers(0, 250), more=st.integers(1, 250))
def test_an_estimate_lies_between_nothing_and_the_limit(
    ended: list[tuple[int, bool]], num_generated: int, more: int
) -> None:
    lengths = AnswerLengths()
    for num_tokens, is_cut in ended:
        lengths.observe(num_tokens, is_cut)
    found = remaining(lengths, num_generated, num_generated + more)
    assert 0 <= found <= more + 1e-6
    assert remaining(lengths, num_generated, num_generated + more + 1) >= found
