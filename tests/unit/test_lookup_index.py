"""Searching a text for the end of another, against the definition."""

from hypothesis import given
from hypothesis import strategies as st

from specedge.drafting.ngram_index import MAX_MATCH, MIN_MATCH, Match, NGramIndex

texts = st.lists(st.integers(0, 2), max_size=40)


def agreement(text: list[int], position: int, tail: list[int]) -> int:
    """Tokens before a position that agree with the end of `tail`."""
    length = 0
    while length < min(position, len(tail), MAX_MATCH) and text[position - 1 - length] == tail[-1 - length]:
        length += 1
    return length


@given(built=texts, added=texts, tail=texts, near=st.integers(0, 80))
def test_the_longest_agreement_is_found_and_of_several_the_nearest(
    built: list[int], added: list[int], tail: list[int], near: int
) -> None:
    index = NGramIndex(built)
    for token in added:
        index.append(token)
    text = built + added
    assert index.token_ids.tolist() == text
    match = index.find(tail, near)
    lengths = {position: agreement(text, position, tail) for position in range(len(text))}
    pairs = [p for p in range(2, len(text)) if text[p - 2 : p] == tail[-2:]]
    if len(pairs) > 8:  # a search looks at a bounded number of places
        assert match is not None and lengths[match.position] == match.length >= MIN_MATCH
        return
    longest = max((lengths[position] for position in pairs), default=0)
    if longest < MIN_MATCH:
        assert match is None
        return
    assert match is not None and match.length == longest
    distances = [abs(position - near) for position in pairs if lengths[position] == longest]
    assert lengths[match.position] == longest and abs(match.position - near) == min(distances)


@given(texts)
def test_a_text_may_be_built_at_once_or_token_by_token(text: list[int]) -> None:
    at_once, by_token = NGramIndex(text, 64), NGramIndex(text[:1], 64)
    for token in text[1:]:
        by_token.append(token)
    assert at_once._heads == by_token._heads
    assert at_once._previous[1 : len(text)] == by_token._previous[1:]


def test_the_end_of_the_text_itself_is_no_place() -> None:
    index = NGramIndex([1, 2, 3, 9, 2, 3])
    assert index.find([2, 3], near=6) == Match(3, 2)
    assert index.find([9, 2], near=0) == Match(5, 2)
    assert NGramIndex([1, 2, 3]).find([2, 3], near=3) is None
    assert index.find([3], near=0) is None
