"""Answers in the shape of Anthropic's `/v1/messages`: a message of content blocks, whole or as named events."""

import json
from collections.abc import Sequence
from typing import Any

from edge_agent.http.delta import Delta, ToolCallDelta
from edge_agent.http.errors import ApiError
from edge_agent.http.openai_writer import AnswerHead
from edge_agent.http.writer import AnswerPart, AnswerTotals, Json, event


class AnthropicWriter:
    """One message.

    Args:
        head: id and model.
    """

    def __init__(self, head: AnswerHead) -> None:
        self._head = head
        self._num_blocks = 0
        self._open: str | int | None = None  # what the open block is: a type, or the index of a tool call
        self._last = AnswerPart(Delta(), "")

    def begin(self, totals: AnswerTotals) -> bytes:
        """See `AnswerWriter.begin`."""
        return _event("message_start", message=self._message([], None, totals))

    def opening(self, choice: int, totals: AnswerTotals) -> bytes:
        """See `AnswerWriter.opening`."""
        return b""

    def piece(self, choice: int, part: AnswerPart, totals: AnswerTotals) -> bytes:
        """See `AnswerWriter.piece`."""
        output = part.output
        events = b""
        if output.reasoning:
            events += self._block("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            events += self._delta({"type": "thinking_delta", "thinking": output.reasoning})
        if output.content:
            events += self._block("text", {"type": "text", "text": ""})
            events += self._delta({"type": "text_delta", "text": output.content})
        for call in output.tool_calls:
            events += self._block(call.index, {"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
            if call.arguments:
                events += self._delta({"type": "input_json_delta", "partial_json": call.arguments})
        self._last = part
        return events

    def end(self, totals: AnswerTotals) -> bytes:
        """See `AnswerWriter.end`."""
        delta = {"stop_reason": _stop_reason(self._last), "stop_sequence": _stop_sequence(self._last)}
        return (
            self._close()
            + _event("message_delta", delta=delta, usage=_usage(totals, totals.num_completion_tokens))
            + _event("message_stop")
        )

    def failure(self, error: ApiError) -> bytes:
        """See `AnswerWriter.failure`."""
        return event(error.anthropic_body, "error")

    def whole(self, choices: Sequence[AnswerPart], totals: AnswerTotals) -> Json:
        """See `AnswerWriter.whole`."""
        (part,) = choices
        output = part.output
        blocks: list[Json] = []
        if output.reasoning:
            blocks.append({"type": "thinking", "thinking": output.reasoning, "signature": ""})
        if output.content:
            blocks.append({"type": "text", "text": output.content})
        blocks += [_tool_use(call) for call in output.tool_calls]
        return self._message(blocks, part, totals)

    def _message(self, blocks: list[Json], part: AnswerPart | None, totals: AnswerTotals) -> Json:
        return {
            "id": self._head.id,
            "type": "message",
            "role": "assistant",
            "model": self._head.model,
            "content": blocks,
            "stop_reason": None if part is None else _stop_reason(part),
            "stop_sequence": None if part is None else _stop_sequence(part),
            "system_fingerprint": self._head.system_fingerprint,
            "usage": _usage(totals, 0 if part is None else totals.num_completion_tokens),
        }

    def _block(self, kind: str | int, block: Json) -> bytes:
        """Opens a block of this kind unless it is the open one."""
        if self._open == kind:
            return b""
        closed = self._close()
        self._open = kind
        self._num_blocks += 1
        return closed + _event("content_block_start", index=self._num_blocks - 1, content_block=block)

    def _delta(self, delta: Json) -> bytes:
        return _event("content_block_delta", index=self._num_blocks - 1, delta=delta)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event("content_block_stop", index=self._num_blocks - 1)


def _event(name: str, **fields: Any) -> bytes:
    return event({"type": name, **fields}, name)


def _usage(totals: AnswerTotals, num_output_tokens: int) -> Json:
    num_cached = totals.num_cached_tokens or 0
    return {
        "input_tokens": totals.num_prompt_tokens - num_cached,
        "cache_read_input_tokens": num_cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": num_output_tokens,
    }


def _stop_reason(part: AnswerPart) -> str:
    if part.finish_reason == "length":
        return "max_tokens"
    if part.finish_reason == "tool_calls":
        return "tool_use"
    return "end_turn" if _stop_sequence(part) is None else "stop_sequence"


def _stop_sequence(part: AnswerPart) -> str | None:
    return part.stop_reason if isinstance(part.stop_reason, str) else None


def _tool_use(call: ToolCallDelta) -> Json:
    try:
        arguments = json.loads(call.arguments)
    except ValueError:  # cut off by max_tokens
        arguments = {}
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}
