"""Answers in the shape of OpenAI's `/v1/responses`: a response of output items, whole or as numbered events."""

from collections.abc import Mapping, Sequence
from typing import Any

from edge_agent.http.delta import Delta, ToolCallDelta, joined
from edge_agent.http.errors import ApiError
from edge_agent.http.logprobs import ChatLogprobs
from edge_agent.http.openai_writer import AnswerHead
from edge_agent.http.writer import AnswerPart, AnswerTotals, Json, event


class ResponsesWriter:
    """One response.

    Args:
        head: id, time and model.
        asked: the request's body, parts of which a response repeats.
        logprobs: writes those of the text.
    """

    def __init__(self, head: AnswerHead, asked: Mapping[str, Any], logprobs: ChatLogprobs) -> None:
        self._head = head
        self._asked = asked
        self._logprobs = logprobs
        self._number = 0  # of the next event
        self._items: list[Json] = []  # that are complete
        self._open: str | int | None = None  # what the open item is: its type, or the index of a tool call
        self._parts: list[Delta] = []  # of the open item
        self._scores: list[Json] = []  # log-probabilities of the open item
        self._finish_reason = ""

    def begin(self, totals: AnswerTotals) -> bytes:
        """See `AnswerWriter.begin`."""
        response = self._response("in_progress", [], None)
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def opening(self, choice: int, totals: AnswerTotals) -> bytes:
        """See `AnswerWriter.opening`."""
        return b""

    def piece(self, choice: int, part: AnswerPart, totals: AnswerTotals) -> bytes:
        """See `AnswerWriter.piece`."""
        output = part.output
        events = b""
        if output.reasoning:
            events += self._say("reasoning", Delta(reasoning=output.reasoning))
        if output.content:
            events += self._say("message", Delta(content=output.content), self._logprobs.entries(part.content_tokens))
        for call in output.tool_calls:
            events += self._say(call.index, Delta(tool_calls=(call,)))
        self._finish_reason = part.finish_reason
        return events

    def end(self, totals: AnswerTotals) -> bytes:
        """See `AnswerWriter.end`."""
        events = self._close()
        status = _status(self._finish_reason)
        return events + self._event(f"response.{status}", response=self._response(status, self._items, totals))

    def failure(self, error: ApiError) -> bytes:
        """See `AnswerWriter.failure`."""
        response = self._response("failed", self._items, None)
        response["error"] = {"code": error.code or "server_error", "message": error.message}
        return self._event("response.failed", response=response)

    def whole(self, choices: Sequence[AnswerPart], totals: AnswerTotals) -> Json:
        """See `AnswerWriter.whole`."""
        (part,) = choices
        output = part.output
        items: list[Json] = []
        if output.reasoning:
            items.append(self._item("reasoning", len(items), output))
        if output.content:
            items.append(
                self._item("message", len(items), output, logprobs=self._logprobs.entries(part.content_tokens))
            )
        for call in output.tool_calls:
            items.append(self._item(call.index, len(items), Delta(tool_calls=(call,))))
        return self._response(_status(part.finish_reason), items, totals)

    def _say(self, kind: str | int, delta: Delta, scores: Sequence[Json] = ()) -> bytes:
        """Goes on with the open item if it is of this kind, else opens one."""
        events = b""
        if self._open != kind:
            events += self._close()
            self._open = kind
            head = Delta(tool_calls=tuple(ToolCallDelta(call.index, call.id, call.name) for call in delta.tool_calls))
            item = self._item(kind, len(self._items), head, "in_progress")
            bare = item | ({"content": []} if "content" in item else {})
            events += self._event("response.output_item.added", **self._place, item=bare)
            if kind == "message":
                events += self._part_event("response.content_part.added", item, part=_text_part(""))
        self._parts.append(delta)
        self._scores += scores
        item = self._item(kind, len(self._items), delta)
        if delta.reasoning:
            return events + self._part_event("response.reasoning_text.delta", item, delta=delta.reasoning)
        if delta.content:
            return events + self._part_event(
                "response.output_text.delta", item, delta=delta.content, logprobs=list(scores)
            )
        arguments = delta.tool_calls[0].arguments
        if not arguments:
            return events
        name = "response.function_call_arguments.delta"
        return events + self._event(name, **self._place, item_id=item["id"], delta=arguments)

    def _close(self) -> bytes:
        """Completes the open item."""
        if self._open is None:
            return b""
        whole = joined(self._parts)
        item = self._item(self._open, len(self._items), whole, logprobs=self._scores)
        if whole.reasoning:
            events = self._part_event("response.reasoning_text.done", item, text=whole.reasoning)
        elif whole.content:
            part = item["content"][0]
            events = self._part_event("response.output_text.done", item, text=whole.content, logprobs=self._scores)
            events += self._part_event("response.content_part.done", item, part=part)
        else:
            (call,) = whole.tool_calls
            done = {"item_id": item["id"], "name": call.name, "arguments": call.arguments}
            events = self._event("response.function_call_arguments.done", **self._place, **done)
        events += self._event("response.output_item.done", **self._place, item=item)
        self._items.append(item)
        self._open, self._parts, self._scores = None, [], []
        return events

    @property
    def _place(self) -> Json:
        return {"output_index": len(self._items)}

    def _part_event(self, name: str, item: Json, /, **fields: Any) -> bytes:
        return self._event(name, **self._place, item_id=item["id"], content_index=0, **fields)

    def _event(self, name: str, /, **fields: Any) -> bytes:
        self._number += 1
        return event({"type": name, "sequence_number": self._number - 1, **fields}, name)

    def _item(
        self,
        kind: str | int,
        index: int,
        output: Delta,
        status: str = "completed",
        *,
        logprobs: Sequence[Json] = (),
    ) -> Json:
        own_id = f"{self._head.id.removeprefix('resp-')}-{index}"
        if isinstance(kind, int):
            (call,) = output.tool_calls
            names = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
            return {"id": f"fc-{own_id}", "type": "function_call", "status": status, **names}
        if kind == "reasoning":
            content = [{"type": "reasoning_text", "text": output.reasoning}]
            return {"id": f"rs-{own_id}", "type": "reasoning", "status": status, "summary": [], "content": content}
        content = [_text_part(output.content, logprobs)]
        return {"id": f"msg-{own_id}", "type": "message", "role": "assistant", "status": status, "content": content}

    def _response(self, status: str, items: list[Json], totals: AnswerTotals | None) -> Json:
        asked = self._asked
        return {
            "id": self._head.id,
            "object": "response",
            "created_at": self._head.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.get("instructions"),
            "max_output_tokens": asked.get("max_output_tokens"),
            "metadata": asked.get("metadata") or {},
            "model": self._head.model,
            "output": items,
            "parallel_tool_calls": asked.get("parallel_tool_calls") is not False,
            "previous_response_id": None,
            "reasoning": asked.get("reasoning") or {"effort": None, "summary": None},
            "store": False,
            "system_fingerprint": self._head.system_fingerprint,
            "temperature": asked.get("temperature"),
            "text": asked.get("text") or {"format": {"type": "text"}},
            "tool_choice": asked.get("tool_choice") or "auto",
            "tools": asked.get("tools") or [],
            "top_logprobs": asked.get("top_logprobs") or 0,
            "top_p": asked.get("top_p"),
            "truncation": "disabled",
            "usage": None if totals is None else _usage(totals),
        }


def _status(finish_reason: str) -> str:
    return "incomplete" if finish_reason == "length" else "completed"


def _text_part(text: str, logprobs: Sequence[Json] = ()) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def _usage(totals: AnswerTotals) -> Json:
    return {
        "input_tokens": totals.num_prompt_tokens,
        "input_tokens_details": {"cached_tokens": totals.num_cached_tokens or 0},
        "output_tokens": totals.num_completion_tokens,
        "output_tokens_details": {"reasoning_tokens": totals.num_reasoning_tokens},
        "total_tokens": totals.num_prompt_tokens + totals.num_completion_tokens,
    }
