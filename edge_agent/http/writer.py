"""How an endpoint writes an answer: whole as JSON, or piece by piece as server-sent events."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from edge_agent.http.choice_text import Piece, PromptTokens
from edge_agent.http.content_tokens import ScoredToken
from edge_agent.http.delta import Delta
from edge_agent.http.errors import ApiError
from edge_agent.http.speculation import SpeculationSummary
from specedge.wire.messages import TokenLogprob

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AnswerPart:
    """What one choice has to show: what is new of it, or all of it.

    Attributes:
        output: the text, told apart.
        finish_reason: "" until the choice has ended.
        stop_reason: the stop string, or the id of the stop token that the request named, which ended it.
        token_ids: the new tokens, or all.
        logprobs: theirs, where they were asked for.
        content_tokens: those of the content alone, where log-probabilities were asked for.
        prompt: the prompt's tokens, with what is new for the first time.
        trace: what a traced answer's chunk tells of its round.
    """

    output: Delta
    finish_reason: str
    stop_reason: str | int | None = None
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt: PromptTokens | None = None
    trace: Json | None = None
    content_tokens: tuple[ScoredToken, ...] = ()


@dataclass(slots=True)
class AnswerTotals:
    """What a request has used so far.

    Attributes:
        num_prompt_tokens: of all prompts together, each counted once.
        num_choices: answers being generated.
        has_begun: something has been generated.
        num_cached_tokens: prompt tokens that the first answer to each prompt found in the prefix cache; None while
            unknown.
        num_predicted: by choice, tokens of the prediction that the answer took over.
        num_mispredicted: by choice, those that it did not; known when it has ended.
        num_replayed_tokens: tokens that an earlier request had already.
    """

    num_prompt_tokens: int
    num_choices: int
    has_begun: bool = False
    num_completion_tokens: int = 0
    num_reasoning_tokens: int = 0
    num_cached_tokens: int | None = None
    num_predicted: dict[int, int] = field(default_factory=dict)
    num_mispredicted: dict[int, int] = field(default_factory=dict)
    num_replayed_tokens: int = 0
    speculation: SpeculationSummary = field(default_factory=SpeculationSummary)

    def count(self, piece: Piece) -> None:
        """Takes a piece of any choice into account."""
        self.has_begun = True
        self.num_completion_tokens += piece.num_tokens
        if piece.num_cached_tokens is not None:
            self.num_cached_tokens = (self.num_cached_tokens or 0) + piece.num_cached_tokens
        self.num_predicted[piece.choice] = piece.num_predicted
        self.num_mispredicted[piece.choice] = piece.num_mispredicted
        if piece.is_replayed:
            self.num_replayed_tokens += piece.num_tokens
        else:
            self.speculation.add(piece)


class AnswerWriter(Protocol):
    """Writes one request's answer; made anew for each."""

    def begin(self, totals: AnswerTotals) -> bytes:
        """The events before the first piece of any choice."""

    def opening(self, choice: int, totals: AnswerTotals) -> bytes:
        """The events before a choice's first piece."""

    def piece(self, choice: int, part: AnswerPart, totals: AnswerTotals) -> bytes:
        """The events of a piece that has something to show, or ends its choice."""

    def end(self, totals: AnswerTotals) -> bytes:
        """The events after the last piece."""

    def failure(self, error: ApiError) -> bytes:
        """The events that end a stream which broke off."""

    def whole(self, choices: Sequence[AnswerPart], totals: AnswerTotals) -> Json:
        """The answer in one piece."""


def event(data: Json, name: str | None = None) -> bytes:
    """A server-sent event."""
    frame = b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
    return frame if name is None else b"event: " + name.encode() + b"\n" + frame
