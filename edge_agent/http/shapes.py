"""The two answer shapes, `chat.completion` and `text_completion`, whole and in chunks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edge_agent.http.delta import Delta, ToolCallDelta

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class WholeChoice:
    """A finished answer."""

    output: Delta
    finish_reason: str


class AnswerShape(Protocol):
    """How one endpoint writes answers."""

    def opening(self, choice: int) -> Json | None:
        """The chunk before an answer's first text, None where there is none."""

    def chunk(self, choice: int, delta: Delta, finish_reason: str) -> Json:
        """A chunk with something new; `finish_reason` is "" until the answer's last one."""

    def usage_chunk(self) -> Json:
        """The chunk without choices that carries the usage."""

    def whole(self, choices: Sequence[WholeChoice]) -> Json:
        """The answer in one piece."""


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


class ChatShape:
    """`/v1/chat/completions`."""

    def __init__(self, head: AnswerHead, *, shows_reasoning: bool = True) -> None:
        self.head = head
        self._shows_reasoning = shows_reasoning

    def opening(self, choice: int) -> Json | None:
        """Tells the role."""
        return self._chunk(choice, {"role": "assistant", "content": ""}, None)

    def chunk(self, choice: int, delta: Delta, finish_reason: str) -> Json:
        """A delta of reasoning, content and tool calls."""
        fields: Json = {"content": delta.content} if delta.content else {}
        if delta.tool_calls:
            fields["tool_calls"] = [{"index": call.index} | _tool_call(call) for call in delta.tool_calls]
        return self._chunk(choice, fields | self._reasoning(delta), finish_reason or None)

    def usage_chunk(self) -> Json:
        """No choices."""
        return self.head.with_choices("chat.completion.chunk", [])

    def whole(self, choices: Sequence[WholeChoice]) -> Json:
        """Messages."""
        return self.head.with_choices(
            "chat.completion",
            [
                {
                    "index": index,
                    "message": self._message(choice.output),
                    "logprobs": None,
                    "finish_reason": choice.finish_reason,
                }
                for index, choice in enumerate(choices)
            ],
        )

    def _message(self, output: Delta) -> Json:
        message: Json = {"role": "assistant", "content": output.content, "refusal": None}
        if output.tool_calls:
            message["content"] = output.content or None
            message["tool_calls"] = [_tool_call(call) for call in output.tool_calls]
        return message | self._reasoning(output)

    def _reasoning(self, delta: Delta) -> Json:
        """The reasoning under both names that clients look for; nothing where there is none."""
        if not delta.reasoning or not self._shows_reasoning:
            return {}
        return {"reasoning_content": delta.reasoning, "reasoning": delta.reasoning}

    def _chunk(self, choice: int, delta: Json, finish_reason: str | None) -> Json:
        entry = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self.head.with_choices("chat.completion.chunk", [entry])


class CompletionShape:
    """`/v1/completions`; a chunk looks like the whole."""

    def __init__(self, head: AnswerHead) -> None:
        self.head = head

    def opening(self, choice: int) -> Json | None:
        """Texts begin with text."""
        return None

    def chunk(self, choice: int, delta: Delta, finish_reason: str) -> Json:
        """A part of the text."""
        return self.head.with_choices("text_completion", [_text_choice(choice, delta.content, finish_reason or None)])

    def usage_chunk(self) -> Json:
        """No choices."""
        return self.head.with_choices("text_completion", [])

    def whole(self, choices: Sequence[WholeChoice]) -> Json:
        """Texts."""
        entries = [
            _text_choice(index, choice.output.content, choice.finish_reason) for index, choice in enumerate(choices)
        ]
        return self.head.with_choices("text_completion", entries)


def _tool_call(call: ToolCallDelta) -> Json:
    """A call, or a part of one: only its first part tells id and name."""
    if not call.name:
        return {"function": {"arguments": call.arguments}}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _text_choice(index: int, text: str, finish_reason: str | None) -> Json:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


class Usage:
    """Token counts of a request; `num_cached_tokens` is None while unknown, and for several choices."""

    def __init__(self, num_prompt_tokens: int) -> None:
        self._num_prompt_tokens = num_prompt_tokens
        self.num_completion_tokens = 0
        self.num_cached_tokens: int | None = None

    def as_json(self) -> Json:
        """OpenAI's usage object."""
        usage: Json = {
            "prompt_tokens": self._num_prompt_tokens,
            "completion_tokens": self.num_completion_tokens,
            "total_tokens": self._num_prompt_tokens + self.num_completion_tokens,
        }
        if self.num_cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": self.num_cached_tokens}
        return usage
