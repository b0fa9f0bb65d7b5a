"""What is recorded of one answer: a head, then tokens as they came, then the end of each choice.

Entries are JSON arrays in lines; a frame holds some of them. Numbers come back as the same floating-point values.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

from edge_agent.committed_answer import Burst, BurstStats
from specedge.wire.messages import FinishReason, TokenLogprob

_TOKENS: Final = "t"
_END: Final = "e"


@dataclass(frozen=True, slots=True)
class AnswerHeader:
    """Which request an answer is for.

    Attributes:
        answer_id: the id clients see.
        created: seconds since 1970.
        path: of the endpoint.
        body: what the request's body is known by.
        plan: what prompts, parameters, seeds and model are known by: with the same ones tokens can be continued.
        is_draft_only: it is the draft model's.
    """

    answer_id: str
    created: int
    path: str
    body: str
    plan: str
    is_draft_only: bool = False


@dataclass(slots=True)
class RecordedChoice:
    """The tokens of one choice as far as they are recorded.

    Attributes:
        is_ended: the choice has all its tokens; a stop string may have ended it, which no finish reason tells.
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason = ""
    num_cached_tokens: int | None = None
    is_ended: bool = False

    def burst(self) -> Burst:
        """All of it at once."""
        return Burst(
            tuple(self.token_ids),
            self.finish_reason,
            num_accepted=0,
            stats=BurstStats(num_cached_tokens=self.num_cached_tokens),
            logprobs=tuple(self.logprobs),
            prompt_logprobs=self.prompt_logprobs,
            is_replayed=True,
        )


@dataclass(slots=True)
class RecordedAnswer:
    """An answer as far as it is recorded."""

    header: AnswerHeader
    choices: dict[int, RecordedChoice] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        return sum(len(choice.token_ids) for choice in self.choices.values())

    @classmethod
    def parse(cls, texts: Iterable[bytes]) -> Self | None:
        """From the texts of a file's frames; None where there is none."""
        lines = [line for text in texts for line in text.splitlines()]
        if not lines:
            return None
        answer = cls(AnswerHeader(**json.loads(lines[0])))
        for line in lines[1:]:
            answer._take(json.loads(line))
        return answer

    def _take(self, entry: list[Any]) -> None:
        kind, index, *rest = entry
        choice = self.choices.setdefault(index, RecordedChoice())
        if kind == _END:
            choice.is_ended = True
            return
        token_ids, finish_reason, *details = rest
        choice.token_ids += token_ids
        choice.finish_reason = finish_reason
        if details:
            cached, logprobs, prompt_logprobs = details
            choice.num_cached_tokens = cached if choice.num_cached_tokens is None else choice.num_cached_tokens
            choice.logprobs += _logprobs(logprobs)
            choice.prompt_logprobs = choice.prompt_logprobs or _logprobs(prompt_logprobs)


def header_line(header: AnswerHeader) -> bytes:
    """An answer's first entry."""
    return _line(asdict(header))


def tokens_line(choice: int, burst: Burst) -> bytes:
    """The entry of a burst."""
    entry: list[Any] = [_TOKENS, choice, burst.token_ids, burst.finish_reason]
    cached = burst.stats.num_cached_tokens
    if cached is not None or burst.logprobs or burst.prompt_logprobs:
        entry += [cached, burst.logprobs, burst.prompt_logprobs]
    return _line(entry)


def end_line(choice: int) -> bytes:
    """The entry of a choice's end."""
    return _line([_END, choice])


def _line(entry: Any) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _logprobs(entries: list[Any]) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(own, tuple(ids), tuple(values)) for own, ids, values in entries)
