"""The detokenizer on chosen texts: partial characters, special tokens, word spaces, and the cost of a token."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from edge_agent.detokenizer import DetokenizerFactory

TARGET = Path(__file__).parents[2] / "models" / "target"
END_OF_TURN = 2


@pytest.fixture(scope="module")
def byte_level() -> Any:
    return AutoTokenizer.from_pretrained(TARGET)


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """A byte-fallback vocabulary with the decoder that Llama 2, Mistral and Gemma models come with."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁Hello", "▁world", "!", "▁", "lo"]
    backend = Tokenizer(
        models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def ids_of(tokenizer: Any, *tokens: str) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(token) for token in tokens]


def fed(tokenizer: Any, token_ids: list[int], context_ids: tuple[int, ...] = ()) -> tuple[list[str], str]:
    detokenizer = DetokenizerFactory(tokenizer).create(context_ids)
    return [detokenizer.feed(token_id) for token_id in token_ids], detokenizer.flush()


def test_a_character_appears_with_its_last_byte(byte_level: Any) -> None:
    token_ids = byte_level("a🙂b").input_ids
    pieces, rest = fed(byte_level, token_ids)
    assert len(token_ids) == 6, "the test needs the emoji to be spelled by four tokens"
    assert pieces == ["a", "", "", "", "🙂", "b"]
    assert rest == ""


def test_an_unfinished_character_is_flushed_as_a_replacement(byte_level: Any) -> None:
    token_ids = byte_level("a🙂").input_ids[:-1]
    pieces, rest = fed(byte_level, token_ids)
    assert "".join(pieces) == "a"
    assert rest == "\ufffd"
    assert byte_level.decode(token_ids) == "a\ufffd"


def test_invalid_bytes_do_not_hold_back_what_follows(byte_level: Any) -> None:
    continuation_byte = byte_level("🙂").input_ids[1]
    pieces, _ = fed(byte_level, [continuation_byte] * 5)
    assert pieces == ["\ufffd"] * 5


def test_special_tokens_leave_no_text_even_inside_a_character(byte_level: Any) -> None:
    first, *others = byte_level("🙂").input_ids
    pieces, rest = fed(byte_level, [first, END_OF_TURN, *others])
    assert "".join(pieces) + rest == "🙂"


def test_ids_beyond_the_vocabulary_have_no_text(byte_level: Any) -> None:
    pieces, rest = fed(byte_level, [*byte_level("ab").input_ids, 99_999, *byte_level("c").input_ids])
    assert "".join(pieces) + rest == "abc"


def test_plain_added_tokens_are_shown() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    tokenizer.add_tokens(["<think>—</think>"])
    token_ids = tokenizer("so <think>—</think> it").input_ids
    pieces, rest = fed(tokenizer, token_ids)
    assert "".join(pieces) + rest == "so <think>—</think> it" == tokenizer.decode(token_ids)


def test_word_spaces_of_a_sentencepiece_vocabulary() -> None:
    tokenizer = sentencepiece_like()
    token_ids = ids_of(tokenizer, "▁Hello", "▁world", "!", "▁", "▁Hello", "</s>", "▁world")
    pieces, rest = fed(tokenizer, token_ids)
    assert pieces == ["Hello", " world", "!", " ", " Hello", "", " world"]
    assert "".join(pieces) + rest == tokenizer.decode(token_ids, skip_special_tokens=True)


def test_a_leading_lone_space_is_stripped_as_the_tokenizer_strips_it() -> None:
    tokenizer = sentencepiece_like()
    token_ids = ids_of(tokenizer, "▁", "▁Hello")
    pieces, rest = fed(tokenizer, token_ids)
    assert "".join(pieces) + rest == tokenizer.decode(token_ids) == " Hello"


def test_a_continued_text_keeps_the_space_of_its_first_word() -> None:
    tokenizer = sentencepiece_like()
    context = tuple(ids_of(tokenizer, "<s>", "▁Hello"))
    pieces, _ = fed(tokenizer, ids_of(tokenizer, "▁world", "!"), context)
    assert pieces == [" world", "!"]


def test_fallback_bytes_appear_as_whole_characters() -> None:
    tokenizer = sentencepiece_like()
    byte_ids = [3 + byte for byte in "€🙂€".encode()]
    pieces, rest = fed(tokenizer, [*ids_of(tokenizer, "▁Hello"), *byte_ids, *ids_of(tokenizer, "!")])
    assert [piece for piece in pieces if piece] == ["Hello", "€", "🙂", "€", "!"]
    assert rest == ""


@pytest.mark.parametrize("make_tokenizer", [sentencepiece_like, lambda: AutoTokenizer.from_pretrained(TARGET)])
def test_a_token_costs_the_same_late_in_the_text(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer()
    longest_window = 0

    class Counting:
        backend_tokenizer = tokenizer.backend_tokenizer
        added_tokens_decoder = tokenizer.added_tokens_decoder
        convert_ids_to_tokens = tokenizer.convert_ids_to_tokens

        def decode(self, token_ids: list[int], **options: Any) -> str:
            nonlocal longest_window
            longest_window = max(longest_window, len(token_ids))
            return str(tokenizer.decode(token_ids, **options))

    bad_byte = tokenizer.convert_tokens_to_ids("<0x80>") if make_tokenizer is sentencepiece_like else 223
    detokenizer = DetokenizerFactory(Counting()).create()
    for _ in range(500):
        detokenizer.feed(bad_byte)
    assert longest_window <= 32
