"""Follows a grammar whose masks are made when they are needed, by llguidance.

xgrammar computes a mask ahead for each place in a grammar. A string of at most 100 characters has 100 places, each over
the whole vocabulary: seconds. llguidance walks the vocabulary's prefix tree instead, for the places that are reached.
"""

from collections.abc import Sequence
from typing import Final

import llguidance.numpy
import numpy as np
import xgrammar
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from specedge.grammar.matcher import BeginMatcher

LEXER_FUEL: Final = 1_000_000
"""To read a grammar: about 20 ms."""
STEP_FUEL: Final = 200_000
"""To make one mask: about 15 ms."""
STEP_ITEMS: Final = 50_000
MAX_LEXER_STATES: Final = 50_000
"""At 1 or 2 kB each."""


class LazyVocabulary:
    """The tokens, arranged for `LazyMatcher`; made once, in about half a second for 152k tokens.

    Args:
        info: the vocabulary; special tokens begin with a byte that no text has, which llguidance marks them by, too.
    """

    def __init__(self, info: xgrammar.TokenizerInfo) -> None:
        wrapper = TokenizerWrapper(_Tokens([bytes(text) for text in info.decoded_vocab], info.stop_token_ids))
        self._tokenizer = LLTokenizer(wrapper, n_vocab=info.vocab_size, eos_token=list(info.stop_token_ids))
        self._limits = LLParserLimits(
            initial_lexer_fuel=LEXER_FUEL,
            step_lexer_fuel=STEP_FUEL,
            step_max_items=STEP_ITEMS,
            max_lexer_states=MAX_LEXER_STATES,
            verbose_errors=False,
        )

    def begin(self, grammar: str) -> BeginMatcher:
        """Starts matchers of a grammar in llguidance's form, which share what they find out.

        Raises:
            ValueError: it is no grammar, or needs too much.
        """
        first = LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        if first.is_error():
            raise ValueError(first.get_error())
        return lambda end_ids: LazyMatcher(first.deep_copy(), end_ids)


class LazyMatcher:
    """A `Matcher`. Where it cannot go on within its limits, no token is allowed."""

    def __init__(self, matcher: LLMatcher, end_ids: Sequence[int], has_ended: bool = False) -> None:
        self._matcher = matcher
        self._end_ids = tuple(end_ids)
        self._has_ended = has_ended

    def accept_token(self, token_id: int, /) -> bool:
        if self._has_ended:
            return False
        if token_id in self._end_ids:
            self._has_ended = self._matcher.is_accepting()
            return self._has_ended
        return self._matcher.try_consume_tokens([token_id]) == 1

    def rollback(self, num_tokens: int, /) -> None:
        if num_tokens and self._has_ended:
            self._has_ended = False
            num_tokens -= 1
        if num_tokens:
            self._matcher.rollback(num_tokens)

    def fill_next_token_bitmask(self, masks: NDArray[np.int32], row: int = 0, /) -> None:
        if not self._matcher.is_error():
            llguidance.numpy.fill_next_token_bitmask(self._matcher, masks, row)
        if self._matcher.is_error():
            masks[row] = 0
            return
        words, may_end = masks[row].view(np.uint32), self._matcher.is_accepting()
        for end_id in self._end_ids:
            bit = np.uint32(1 << end_id % 32)
            words[end_id // 32] = words[end_id // 32] | bit if may_end else words[end_id // 32] & ~bit

    def is_terminated(self) -> bool:
        return self._has_ended

    def is_completed(self) -> bool:
        return self._has_ended or self._matcher.is_accepting()

    def fork(self) -> "LazyMatcher":
        return LazyMatcher(self._matcher.deep_copy(), self._end_ids, self._has_ended)


class _Tokens:
    """What llguidance asks a tokenizer for. It never has to encode: grammars are told to force no tokens."""

    def __init__(self, tokens: list[bytes], end_ids: Sequence[int]) -> None:
        self.tokens = tokens
        self.eos_token_id = end_ids[0]
        self.bos_token_id = None
        self.special_token_ids: list[int] = []

    def __call__(self, text: bytes) -> list[int]:
        return []
