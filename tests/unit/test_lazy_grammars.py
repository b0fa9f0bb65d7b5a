"""Grammars followed lazily: the masks of tables made ahead, texts of bounded length, and a large vocabulary."""

import json
import re

import numpy as np
import pytest
import xgrammar
from grammar_support import EOS, VOCAB_SIZE, allowed, compiled, compiler, ids, tokenizer

from specedge.grammar import lazy_matcher
from specedge.grammar.compiler import LAZY_BYTES
from specedge.grammar.lazy_grammar import lazy_grammar
from specedge.grammar.lazy_matcher import LazyVocabulary

NOTE = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 3, "maxLength": 12},
        "code": {"type": "string", "pattern": "[a-f]{2,9}"},
        "lines": {"type": "array", "items": {"type": "string", "maxLength": 6}, "maxItems": 3},
        "kind": {"enum": ["a", "b", None]},
    },
    "required": ["title", "code", "lines", "kind"],
}


def walk(state, seed: int, max_tokens: int = 400) -> str | None:
    """The text of allowed tokens drawn at random, which ends as soon as it may; None when it did not end."""
    rng = np.random.default_rng(seed)
    tokens: list[int] = []
    for _ in range(max_tokens):
        options = allowed(state.masks([], [])[0])
        token = EOS if EOS in options else int(rng.choice(sorted(options)))
        assert state.accept([token]) == 1
        if state.is_ended:
            return tokenizer().decode(tokens)
        tokens.append(token)
    return None


@pytest.mark.parametrize(
    "pattern", ["[a-z]{1,12}x", "([a-z]+ ){3,12}", r"[^x]{3,9}[\s\S]", r"\w{3,9} \d{1,20}/é", "(ab?|[0-9]+){2,8}"]
)
def test_masks_are_those_of_tables_made_ahead(pattern: str) -> None:
    state = compiled("regex", pattern).start()
    table = xgrammar.GrammarCompiler(compiler()._info, max_threads=1).compile_regex(pattern)
    matcher = xgrammar.GrammarMatcher(table, override_stop_tokens=[EOS])
    assert lazy_grammar("regex", pattern) is not None
    rng, mask = np.random.default_rng(0), np.zeros((1, -(-VOCAB_SIZE // 32)), dtype=np.int32)
    for _ in range(30):
        matcher.fill_next_token_bitmask(mask)
        lazy = state.masks([], [])
        assert allowed(lazy[0]) == allowed(mask[0])
        options = sorted(allowed(mask[0]) - {EOS})
        if not options:
            break
        token = int(rng.choice(options))
        assert matcher.accept_token(token)
        assert state.accept([token]) == 1


@pytest.mark.parametrize("seed", range(6))
def test_strings_keep_their_lengths_and_patterns(seed: int) -> None:
    text = walk(compiled("json_schema", NOTE).start(), seed)
    assert text is not None
    note = json.loads(text)
    assert set(note) == set(NOTE["properties"])
    assert 3 <= len(note["title"]) <= 12
    assert re.fullmatch("[a-f]{2,9}", note["code"])
    assert len(note["lines"]) <= 3
    assert all(len(line) <= 6 for line in note["lines"])
    assert note["kind"] in ("a", "b", None)


@pytest.mark.parametrize(
    "text", ['{"a": 1, "b": 2}', '{"a": "x"}', '{"a": 1' + " " * 9 + "}", ' {"a": 1}', '{"a": 1}\n']
)
def test_nothing_beside_what_the_schema_names(text: str) -> None:
    state = compiled("json_schema", {"properties": {"a": {"type": "integer"}}, "required": ["a"]}).start()
    tokens = [*ids(text), EOS]
    assert state.accept(tokens) < len(tokens)


def call(content: dict, begin: str = "<call>", end: str = "</call>") -> dict:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def test_calls_and_thoughts_with_bounded_strings() -> None:
    content = {"type": "json_schema", "json_schema": {"type": "string", "maxLength": 30}}
    elements = [
        call({"type": "any_text"}, "", "</think>"),
        {"type": "regex", "pattern": r"[ \n]{0,4}"},
        {
            "type": "tags_with_separator",
            "tags": [call(content), call(content, "<b>", "</b>")],
            "separator": "; ",
            "at_least_one": True,
            "stop_after_first": False,
        },
    ]
    tag = {"type": "structural_tag", "format": {"type": "sequence", "elements": elements}}
    grammar = compiled("structural_tag", tag)
    assert grammar.num_bytes == LAZY_BYTES
    long = "x" * 30
    for text, is_taken in (
        (f'Well\n"</think>\n<call>"{long}"</call>; <b>"y"</b>', True),
        (f'</think><b>"{long}"</b>', True),
        (f'</think><b>"{long}x"</b>', False),
        ("</think>", False),
        ('</think><b>"y"</b> <b>"y"</b>', False),
    ):
        tokens = [*ids(text), EOS]
        assert (grammar.start().accept(tokens) == len(tokens)) is is_taken, text


def test_a_tag_that_cannot_be_put_lazily_is_compiled() -> None:
    tag = {"type": "triggered_tags", "triggers": ["<call>"], "tags": [call({"type": "const_string", "value": "x"})]}
    state = compiled("structural_tag", {"type": "structural_tag", "format": tag}).start()
    tokens = [*ids("Hm <call>x</call> so"), EOS]
    assert state.accept(tokens) == len(tokens)


def test_forks_and_rollback_over_the_end() -> None:
    state = compiled("regex", "[ab]{1,9}").start()
    a = ids("a")[0]
    assert state.allows([a, EOS], [a]).tolist() == [False]
    assert state.allows([a], [a, EOS]).all()
    other = state.fork()
    assert other.accept([a, EOS]) == 2
    assert other.is_ended
    assert other.is_complete
    assert other.fork().is_ended
    assert not state.is_complete
    assert state.accept([EOS, a]) == 0
    assert state.accept([a, a]) == 2


def test_past_its_limits_no_token_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy_matcher, "STEP_FUEL", 10)
    begin = LazyVocabulary(compiler()._info).begin(lazy_grammar("regex", "([a-z]{1,50}|[0-9a-f ]{3,40}){2,9}") or "")
    matcher, mask = begin([EOS]), np.full((1, -(-VOCAB_SIZE // 32)), -1, dtype=np.int32)
    for _ in range(5):
        matcher.fill_next_token_bitmask(mask)
        if not allowed(mask[0]):
            break
        matcher.accept_token(min(allowed(mask[0]) - {EOS}))
    assert not mask.any()
    assert not matcher.is_completed()


def test_a_bounded_string_with_152_thousand_tokens() -> None:
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b'abcdefghijklmnopqrstuvwxyz ,."{}:0123456789', dtype=np.uint8)
    words = {bytes([byte]) for byte in range(256)}
    while len(words) < 152_000:
        words |= {rng.choice(letters, size).tobytes() for size in rng.integers(2, 12, size=20_000)}
    texts = [*sorted(words)[:151_999], b"\xff<end>"]
    info = xgrammar.TokenizerInfo(texts, xgrammar.VocabType.RAW, vocab_size=152_000, stop_token_ids=[151_999])
    grammar = lazy_grammar("json_schema", json.dumps({"type": "string", "maxLength": 100}))
    assert grammar is not None
    matcher = LazyVocabulary(info).begin(grammar)([151_999])
    number = {text: index for index, text in enumerate(texts)}
    for char in b'"' + b"a" * 97:
        assert matcher.accept_token(number[bytes([char])])
    mask = np.zeros((1, 152_000 // 32), dtype=np.int32)
    matcher.fill_next_token_bitmask(mask)
    can = allowed(mask[0])
    is_text = [all(32 <= byte < 127 and byte not in b'"\\' for byte in text) for text in texts]
    assert {index for index in can if is_text[index]} == {
        index for index, text in enumerate(texts) if is_text[index] and len(text) <= 3
    }
    assert {texts[index] for index in can if not is_text[index] and index < 151_999 and b'"' in texts[index]} == {
        text for text in texts if re.fullmatch(rb'[^"\\\x00-\x1f\x7f-\xff]{0,3}"', text)
    }
