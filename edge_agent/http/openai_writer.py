"""Answers in OpenAI's two shapes, `chat.completion` and `text_completion`, whole and in chunks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from edge_agent.http.delta import Delta, ToolCallDelta
from edge_agent.http.errors import ApiError
from edge_agent.http.logprobs import ChatLogprobs, CompletionLogprobs
from edge_agent.http.writer import AnswerPart, AnswerTotals, Json, event

_DONE: Final = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What every part of an answer repeats."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    def with_choices(self, kind: str, choices: list[Json]) -> Json:
        """An answer object of one kind."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
            "choices": choices,
        }


class Shape(Protocol):
    """How one endpoint writes choices."""

    chunk_kind: str
    whole_kind: str

    def opening(self, choice: int) -> Json | None:
        """The choice in the chunk before its first text, None where there is none."""

    def chunk(self, choice: int, part: AnswerPart) -> Json:
        """The choice in a chunk."""

    def whole(self, choice: int, part: AnswerPart) -> Json:
        """The choice in a whole answer."""

    def beside(self, part: AnswerPart) -> Json:
        """What stands beside the choices, from a choice's first part."""


class ChatShape:
    """`/v1/chat/completions`."""

    chunk_kind = "chat.completion.chunk"
    whole_kind = "chat.completion"

    def __init__(self, logprobs: ChatLogprobs, *, shows_reasoning: bool = True) -> None:
        self._logprobs = logprobs
        self._shows_reasoning = shows_reasoning

    def opening(self, choice: int) -> Json | None:
        """Tells the role."""
        return self._chunk(choice, {"role": "assistant", "content": ""}, None)

    def chunk(self, choice: int, part: AnswerPart) -> Json:
        """A delta of reasoning, content and tool calls."""
        output = part.output
        fields: Json = {"content": output.content} if output.content else {}
        if output.tool_calls:
            fields["tool_calls"] = [{"index": call.index} | _tool_call(call) for call in output.tool_calls]
        chunk = self._chunk(choice, fields | self._reasoning(output), part.finish_reason or None)
        return chunk | self._logprobs.of_choice(part) | _stop_reason(part)

    def whole(self, choice: int, part: AnswerPart) -> Json:
        """A message."""
        output = part.output
        message: Json = {"role": "assistant", "content": output.content, "refusal": None}
        if output.tool_calls:
            message["content"] = output.content or None
            message["tool_calls"] = [_tool_call(call) for call in output.tool_calls]
        message |= self._reasoning(output)
        entry: Json = {"index": choice, "message": message, "logprobs": None, "finish_reason": part.finish_reason}
        return entry | self._logprobs.of_choice(part) | _stop_reason(part)

    def beside(self, part: AnswerPart) -> Json:
        """What is told about the prompt."""
        return self._logprobs.of_answer(part)

    def _reasoning(self, output: Delta) -> Json:
        """The reasoning under both names that clients look for; nothing where there is none."""
        if not output.reasoning or not self._shows_reasoning:
            return {}
        return {"reasoning_content": output.reasoning, "reasoning": output.reasoning}

    def _chunk(self, choice: int, delta: Json, finish_reason: str | None) -> Json:
        return {"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


class CompletionShape:
    """`/v1/completions`; a chunk looks like the whole."""

    chunk_kind = "text_completion"
    whole_kind = "text_completion"

    def __init__(self, logprobs: CompletionLogprobs) -> None:
        self._logprobs = logprobs

    def opening(self, choice: int) -> Json | None:
        """Texts begin with text."""
        return None

    def chunk(self, choice: int, part: AnswerPart) -> Json:
        """A part of the text."""
        finish_reason = part.finish_reason or None
        entry: Json = {"index": choice, "text": part.output.content, "logprobs": None, "finish_reason": finish_reason}
        return entry | self._logprobs.of_choice(choice, part) | _stop_reason(part)

    def whole(self, choice: int, part: AnswerPart) -> Json:
        """All of the text."""
        return self.chunk(choice, part)

    def beside(self, part: AnswerPart) -> Json:
        """Nothing: each choice may have a prompt of its own."""
        return {}


class OpenAIWriter:
    """Chunks that end with `[DONE]`.

    Args:
        head: what every chunk repeats.
        shape: the endpoint's.
        include_usage: a stream ends with a chunk of usage.
        continuous_usage: every chunk of a stream has the usage so far.
    """

    def __init__(
        self, head: AnswerHead, shape: Shape, *, include_usage: bool = False, continuous_usage: bool = False
    ) -> None:
        self._head = head
        self._shape = shape
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage

    def begin(self, totals: AnswerTotals) -> bytes:
        """See `AnswerWriter.begin`."""
        return b""

    def opening(self, choice: int, totals: AnswerTotals) -> bytes:
        """See `AnswerWriter.opening`."""
        opening = self._shape.opening(choice)
        return b"" if opening is None else self._chunk([opening], totals)

    def piece(self, choice: int, part: AnswerPart, totals: AnswerTotals) -> bytes:
        """See `AnswerWriter.piece`."""
        trace: Json = {} if part.trace is None else {"specedge": part.trace}
        return self._chunk([self._shape.chunk(choice, part)], totals, self._shape.beside(part) | trace)

    def end(self, totals: AnswerTotals) -> bytes:
        """See `AnswerWriter.end`."""
        if not self._include_usage:
            return _DONE
        chunk = self._head.with_choices(self._shape.chunk_kind, [])
        return event(chunk | {"usage": usage_json(totals)} | _metrics(totals)) + _DONE

    def failure(self, error: ApiError) -> bytes:
        """See `AnswerWriter.failure`."""
        return event(error.body) + _DONE

    def whole(self, choices: Sequence[AnswerPart], totals: AnswerTotals) -> Json:
        """See `AnswerWriter.whole`."""
        entries = [self._shape.whole(index, part) for index, part in enumerate(choices)]
        answer = self._head.with_choices(self._shape.whole_kind, entries)
        return answer | self._shape.beside(choices[0]) | {"usage": usage_json(totals)} | _metrics(totals)

    def _chunk(self, choices: list[Json], totals: AnswerTotals, beside: Json | None = None) -> bytes:
        usage: Json = {}
        if self._continuous_usage:
            usage = {"usage": usage_json(totals)}
        elif self._include_usage:
            usage = {"usage": None}
        return event(self._head.with_choices(self._shape.chunk_kind, choices) | (beside or {}) | usage)


def usage_json(totals: AnswerTotals) -> Json:
    """OpenAI's usage object."""
    usage: Json = {
        "prompt_tokens": totals.num_prompt_tokens,
        "completion_tokens": totals.num_completion_tokens,
        "total_tokens": totals.num_prompt_tokens + totals.num_completion_tokens,
    }
    details: Json = {}
    if totals.num_reasoning_tokens:
        details["reasoning_tokens"] = totals.num_reasoning_tokens
    num_predicted, num_mispredicted = sum(totals.num_predicted.values()), sum(totals.num_mispredicted.values())
    if num_predicted or num_mispredicted:
        details |= {"accepted_prediction_tokens": num_predicted, "rejected_prediction_tokens": num_mispredicted}
    if details:
        usage["completion_tokens_details"] = details
    if totals.num_cached_tokens is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": totals.num_cached_tokens}
    return usage


def _stop_reason(part: AnswerPart) -> Json:
    return {"stop_reason": part.stop_reason} if part.finish_reason else {}


def _metrics(totals: AnswerTotals) -> Json:
    """Of single answers only: a mean over several would describe none of them."""
    summary = totals.speculation.as_json() if totals.num_choices == 1 else None
    return {} if summary is None else {"metrics": {"speculative_decoding": summary}}


def _tool_call(call: ToolCallDelta) -> Json:
    """A call, or a part of one: only its first part tells id and name."""
    if not call.name:
        return {"function": {"arguments": call.arguments}}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
