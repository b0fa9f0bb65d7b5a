"""An answer's text and counts do not depend on the bursts its tokens came in."""

import pytest
from http_support import EOS_ID, ids, tokenizer

from edge_agent.detokenizer import DetokenizerFactory
from edge_agent.generation import Burst, BurstStats
from edge_agent.http.choice_text import ChoiceText, Piece

STORY = "Naïve 🙂 rabbits: one, two, three. The end."


def pieces_of(
    token_ids: list[int], burst_size: int, reason: str, stops: tuple[str, ...], min_tokens: int
) -> list[Piece]:
    text = ChoiceText(0, DetokenizerFactory(tokenizer()).create(), stops, min_tokens)
    pieces = []
    for start in range(0, len(token_ids), burst_size):
        group = tuple(token_ids[start : start + burst_size])
        is_last = start + burst_size >= len(token_ids)
        pieces.append(text.advance(Burst(group, reason if is_last else "", 0)))  # type: ignore[arg-type]
        if pieces[-1].finish_reason:
            break
    return pieces


def total(pieces: list[Piece]) -> tuple[str, int, str]:
    return (
        "".join(text for piece in pieces for text in piece.texts),
        sum(piece.num_tokens for piece in pieces),
        pieces[-1].finish_reason,
    )


@pytest.mark.parametrize("stops", [(), ("two",), (" three. T", "nothing"), ("🙂",), (".",), ("The end.x",)])
@pytest.mark.parametrize("reason", ["stop", "length"])
@pytest.mark.parametrize("min_tokens", [0, 5, 12])
def test_any_bursts_give_the_same_answer(stops: tuple[str, ...], reason: str, min_tokens: int) -> None:
    token_ids = [*ids(STORY), EOS_ID]
    expected = total(pieces_of(token_ids, 1, reason, stops, min_tokens))
    for burst_size in (2, 3, 5, 100):
        assert total(pieces_of(token_ids, burst_size, reason, stops, min_tokens)) == expected


def test_the_text_ends_before_the_stop_string_and_the_count_with_it() -> None:
    text, num_tokens, reason = total(pieces_of([*ids(STORY), EOS_ID], 4, "stop", ("two",), 0))
    assert text == "Naïve 🙂 rabbits: one, "
    assert num_tokens == len(ids("Naïve 🙂 rabbits: one, two"))
    assert reason == "stop"


def test_a_stop_token_is_counted_but_has_no_text() -> None:
    token_ids = ids("one two")
    assert total(pieces_of(token_ids, 10, "stop", (), 0)) == ("one", len(token_ids), "stop")
    assert total(pieces_of(token_ids, 10, "length", (), 0)) == ("one two", len(token_ids), "length")


def test_what_was_held_back_is_released_at_the_end() -> None:
    smile = ids("🙂")
    assert total(pieces_of([*ids("tw"), EOS_ID], 1, "stop", ("two",), 0))[0] == "tw"
    assert total(pieces_of(smile[:2], 1, "length", (), 0))[0] == "\ufffd"
    assert pieces_of(smile, 2, "length", (), 0)[0].texts == ("", "")


def test_counts_of_the_verification_are_passed_on() -> None:
    text = ChoiceText(3, DetokenizerFactory(tokenizer()).create(), (), 0)
    piece = text.advance(Burst((5, 6), "", 1, BurstStats(num_nodes_verified=4)))
    assert (piece.choice, piece.num_draft_nodes, piece.num_accepted) == (3, 4, 1)
