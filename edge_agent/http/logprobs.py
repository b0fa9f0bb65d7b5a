"""Log-probabilities as OpenAI and vLLM write them."""

import codecs
from collections.abc import Iterable, Sequence

from edge_agent.detokenizer import DetokenizerFactory
from edge_agent.http.token_fields import TokenDetails
from edge_agent.http.writer import AnswerPart, Json
from specedge.wire.messages import TokenLogprob

_LOWEST = -9999.0
"""What JSON has instead of minus infinity."""


class TokenNames:
    """What tokens are called.

    Args:
        detokenizers: spell them.
        as_token_ids: call them "token_id:123" instead.
    """

    def __init__(self, detokenizers: DetokenizerFactory, *, as_token_ids: bool) -> None:
        self._detokenizers = detokenizers
        self._as_token_ids = as_token_ids

    def name(self, token_id: int) -> str:
        """Its text, with replacement characters where it has only a part of a character's bytes."""
        return f"token_id:{token_id}" if self._as_token_ids else self.text(token_id)

    def text(self, token_id: int) -> str:
        """Its text, whatever tokens are called."""
        return self._detokenizers.token_bytes(token_id).decode(errors="replace")

    def entry(self, token_id: int, logprob: float) -> Json:
        """A chat's entry."""
        own_bytes = list(self._detokenizers.token_bytes(token_id))
        return {"token": self.name(token_id), "logprob": _number(logprob), "bytes": own_bytes}


class TextOffsets:
    """Where in an answer's text each token begins, counted in characters.

    Args:
        detokenizers: spell tokens.
        skips_special: special tokens have no text.
    """

    def __init__(self, detokenizers: DetokenizerFactory, *, skips_special: bool) -> None:
        self._detokenizers = detokenizers
        self._skips_special = skips_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_chars = 0

    def next(self, token_id: int) -> int:
        """The place of the next token."""
        start = self._num_chars
        if not (self._skips_special and self._detokenizers.is_special(token_id)):
            self._num_chars += len(self._decoder.decode(self._detokenizers.token_bytes(token_id)))
        return start


class ChatLogprobs:
    """Writes what a chat request wants to know about tokens."""

    def __init__(self, details: TokenDetails, detokenizers: DetokenizerFactory) -> None:
        self._details = details
        self._names = TokenNames(detokenizers, as_token_ids=details.as_token_ids)

    def of_choice(self, part: AnswerPart) -> Json:
        """Fields of a choice."""
        details = self._details
        fields: Json = {"logprobs": None}
        if details.num_logprobs is not None and part.token_ids:
            tokens = zip(part.token_ids, part.logprobs, strict=True)
            fields["logprobs"] = {"content": self.entries(tokens), "refusal": None}
        return fields | ({"token_ids": list(part.token_ids)} if details.shows_token_ids else {})

    def of_answer(self, part: AnswerPart) -> Json:
        """Fields of the answer, of which all choices have one prompt; from its first part."""
        return prompt_fields(part, self._details, self._names)

    def entries(self, tokens: Iterable[tuple[int, TokenLogprob]]) -> list[Json]:
        """Entries of tokens, with the best ones beside each."""
        return [
            self._names.entry(token_id, logprob.logprob)
            | {"top_logprobs": [self._names.entry(*best) for best in _best(logprob, self._details.num_logprobs)]}
            for token_id, logprob in tokens
        ]


class CompletionLogprobs:
    """Writes what a completion request wants to know about tokens; remembers how far each choice's text has come.

    Args:
        details: what is asked.
        detokenizers: spell tokens.
        skips_special: special tokens have no text.
    """

    def __init__(self, details: TokenDetails, detokenizers: DetokenizerFactory, *, skips_special: bool) -> None:
        self._details = details
        self._detokenizers = detokenizers
        self._skips_special = skips_special
        self._names = TokenNames(detokenizers, as_token_ids=details.as_token_ids)
        self._offsets: dict[int, TextOffsets] = {}

    def of_choice(self, choice: int, part: AnswerPart) -> Json:
        """Fields of a choice."""
        details = self._details
        fields: Json = {"logprobs": None}
        if details.num_logprobs is not None:
            token_ids: list[int] = list(part.token_ids)
            logprobs: list[TokenLogprob | None] = list(part.logprobs)
            if details.echoes and part.prompt is not None:
                token_ids = [*part.prompt.token_ids, *token_ids]
                logprobs = [None, *part.prompt.logprobs, *logprobs]
            if token_ids:
                fields["logprobs"] = self._columns(choice, token_ids, logprobs)
        if details.shows_token_ids:
            fields["token_ids"] = list(part.token_ids)
        return fields | prompt_fields(part, details, self._names)

    def _columns(self, choice: int, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob | None]) -> Json:
        if choice not in self._offsets:
            self._offsets[choice] = TextOffsets(self._detokenizers, skips_special=self._skips_special)
        offsets = self._offsets[choice]
        return {
            "text_offset": [offsets.next(token_id) for token_id in token_ids],
            "token_logprobs": [None if logprob is None else _number(logprob.logprob) for logprob in logprobs],
            "tokens": [self._names.name(token_id) for token_id in token_ids],
            "top_logprobs": [self._top(*pair) for pair in zip(token_ids, logprobs, strict=True)],
        }

    def _top(self, token_id: int, logprob: TokenLogprob | None) -> Json | None:
        """The best tokens and the token itself; of tokens with one name the best."""
        if logprob is None:
            return None
        top: Json = {}
        for best_id, best in [*_best(logprob, self._details.num_logprobs), (token_id, logprob.logprob)]:
            top.setdefault(self._names.name(best_id), _number(best))
        return top


def prompt_fields(part: AnswerPart, details: TokenDetails, names: TokenNames) -> Json:
    """vLLM's fields about the prompt; nothing unless they are asked for and known."""
    if part.prompt is None:
        return {}
    fields: Json = {}
    if details.shows_token_ids:
        fields["prompt_token_ids"] = list(part.prompt.token_ids)
    if details.num_prompt_logprobs is not None:
        entries = zip(part.prompt.token_ids[1:], part.prompt.logprobs, strict=True)
        num_top = details.num_prompt_logprobs
        fields["prompt_logprobs"] = [None, *(_by_id(*entry, num_top, names) for entry in entries)]
    return fields


def _by_id(token_id: int, logprob: TokenLogprob, num_top: int, names: TokenNames) -> Json:
    """The best tokens with their ranks, and the token itself, whose rank is known if it is one of them."""
    entries: Json = {
        str(best_id): {"logprob": _number(best), "rank": rank, "decoded_token": names.text(best_id)}
        for rank, (best_id, best) in enumerate(_best(logprob, num_top), start=1)
    }
    own = {"logprob": _number(logprob.logprob), "rank": None, "decoded_token": names.text(token_id)}
    entries.setdefault(str(token_id), own)
    return entries


def _best(logprob: TokenLogprob, num_top: int | None) -> list[tuple[int, float]]:
    return list(zip(logprob.top_ids, logprob.top_logprobs, strict=True))[: num_top or 0]


def _number(logprob: float) -> float:
    return max(logprob, _LOWEST)
