"""Whatever the tokens, the pieces of text joined are the tokenizer's own decoding of all of them."""

from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from edge_agent.detokenizer import DetokenizerFactory

TARGET = Path(__file__).parents[2] / "models" / "target"
NUM_BYTE_TOKENS = 259  # three special tokens, then one token for each byte


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TARGET)


@cache
def factory() -> DetokenizerFactory:
    return DetokenizerFactory(tokenizer())


any_token = st.integers(0, 4095)
byte_token = st.integers(0, NUM_BYTE_TOKENS - 1)


def text_of(token_ids: list[int]) -> str:
    return str(tokenizer().decode(token_ids, skip_special_tokens=True))


@settings(max_examples=300)
@given(st.lists(any_token | byte_token, max_size=60))
def test_random_ids(token_ids: list[int]) -> None:
    detokenizer = factory().create()
    pieces = [detokenizer.feed(token_id) for token_id in token_ids]
    assert "".join(pieces) + detokenizer.flush() == text_of(token_ids)


@settings(max_examples=150)
@given(st.text(max_size=40))
def test_texts_are_released_as_soon_as_they_are_certain(text: str) -> None:
    token_ids = tokenizer()(text, add_special_tokens=False).input_ids
    detokenizer = factory().create()
    released = ""
    for num_fed, token_id in enumerate(token_ids, start=1):
        released += detokenizer.feed(token_id)
        assert released == text_of(token_ids[:num_fed]).rstrip("\ufffd") or text.count("\ufffd")
    assert released + detokenizer.flush() == text_of(token_ids)


@settings(max_examples=100)
@given(st.lists(any_token | byte_token, max_size=40), st.lists(any_token | byte_token, max_size=10))
def test_a_detokenizer_knows_nothing_of_its_neighbours(token_ids: list[int], others: list[int]) -> None:
    alone, beside, neighbour = factory().create(), factory().create(), factory().create()
    expected = "".join(alone.feed(token_id) for token_id in token_ids) + alone.flush()
    pieces = []
    for index, token_id in enumerate(token_ids):
        if index < len(others):
            neighbour.feed(others[index])
        pieces.append(beside.feed(token_id))
    assert "".join(pieces) + beside.flush() == expected
