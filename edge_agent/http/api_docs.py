"""What `/openapi.json` says about bodies that handlers read themselves, to bound them first, and about answers."""

from collections.abc import Sequence
from typing import Any, Final

from pydantic import BaseModel

from edge_agent.http.answer_names import CONVERSATION_HEADER, KEY_HEADER, MAX_NAME_CHARS
from edge_agent.http.answer_schema import (
    AnthropicErrorAnswer,
    ChatAnswer,
    ChatChunk,
    CompletionAnswer,
    CompletionChunk,
    ErrorAnswer,
    MessageAnswer,
    MessageEvent,
    ResponseAnswer,
    ResponseEvent,
)

Docs = dict[str, Any]

TITLE: Final = "SpecEdge edge agent"
DESCRIPTION: Final = """\
An OpenAI-compatible API over edge-assisted speculative decoding. Every token is the target model's own; drafting only
changes how soon it comes. Unknown fields are ignored, null is the same as leaving a field out, and a field that asks
for what is not built is refused.
"""

_ERRORS: Final = {
    400: "The request is wrong; `param` names the field",
    401: "An API key is needed, and none or an unknown one was sent",
    404: "There is no such model",
    408: "The request's body took too long to arrive",
    409: "The answer that the request names is being sent to another one; `retry-after` says when to come back",
    413: "The request's body is too large",
    415: "The request's body is not JSON by its content-type",
    422: "The `Idempotency-Key` was used for another request",
    429: "The API key has reached one of its limits; `retry-after` says when to come back",
    431: "The request has too many headers",
    500: "A defect of this process; its log has the details",
    503: "No capacity, or no verifier; `retry-after` says when to come back",
}
_RETRIED: Final = (409, 429, 503)
_NAME_SCHEMA: Final = {"type": "string", "pattern": f"^[!-~]{{1,{MAX_NAME_CHARS}}}$"}
_WHOLE: Final = "application/json"
_STREAM: Final = "text/event-stream"


def _header(description: str, kind: str = "string") -> Docs:
    return {"description": description, "schema": {"type": kind}}


_ALWAYS: Final = {
    "x-request-id": _header("names this request in logs; the client's own if it sent one"),
    "x-specedge-version": _header("of this edge agent"),
}
_WHOLE_ONLY: Final = {
    "x-specedge-tokens-per-verification": _header(
        "tokens for each verification, in an answer that is not streamed", "number"
    ),
    "x-specedge-draft-tokens": _header("draft nodes verified, in an answer that is not streamed", "integer"),
    "x-specedge-accepted-tokens": _header("draft nodes accepted, in an answer that is not streamed", "integer"),
}
_MARKS: Final = {
    "idempotent-replayed": _header("`true` where the answer begins with tokens of an earlier request"),
    "x-specedge-degraded": _header("`draft-only` where the draft model answers alone: no verifier can be reached"),
}
_NAMES: Final = [
    {"name": name, "in": "header", "required": False, "description": what, "schema": _NAME_SCHEMA}
    for name, what in (
        (KEY_HEADER, "names this answer: sent again with it, the same request takes up where the answer broke off"),
        (CONVERSATION_HEADER, "names a conversation: the same for its last answer; where both are sent the key counts"),
    )
]
_RETRY_AFTER: Final = {"retry-after": _header("seconds", "integer")}


def body_docs(body: type[BaseModel]) -> Docs:
    """A route's documentation of its request body, without references: nothing else declares its parts."""
    return {"requestBody": {"required": True, "content": {_WHOLE: {"schema": _self_contained(body)}}}}


def _self_contained(model: type[BaseModel]) -> Docs:
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})
    inlined: Docs = _inlined(schema, parts)
    return inlined


def _inlined(schema: Any, parts: Docs) -> Any:
    if isinstance(schema, list):
        return [_inlined(entry, parts) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    target = schema.get("$ref")
    if isinstance(target, str):
        schema = parts[target.removeprefix("#/$defs/")] | {name: schema[name] for name in schema if name != "$ref"}
    return {name: _inlined(value, parts) for name, value in schema.items()}


def answer_docs(
    answer: type[BaseModel] | None,
    statuses: Sequence[int] = (),
    *,
    error: type[BaseModel] = ErrorAnswer,
    events: Docs | None = None,
    headers: Docs | None = None,
) -> dict[int | str, Docs]:
    """A route's documentation of its answers.

    Args:
        answer: a whole answer with status 200; None where it is no JSON.
        statuses: the errors it may answer with.
        error: the shape of these.
        events: what a stream is like, where the route can stream.
        headers: of answers with status 200, besides those that every answer has.
    """
    good: Docs = {"headers": _ALWAYS | (headers or {})}
    if answer is not None:
        good["model"] = answer
    if events is not None:
        good["content"] = {_STREAM: events}
    answers: dict[int | str, Docs] = {200: good}
    for status in sorted((*statuses, 431, 500)):
        own = _RETRY_AFTER if status in _RETRIED else {}
        answers[status] = {"model": error, "description": _ERRORS[status], "headers": _ALWAYS | own}
    return answers


def generation_docs(body: type[BaseModel], path: str) -> Docs:
    """Keyword arguments of a generation route, as far as they are documentation."""
    answer, error, summary, events = _GENERATION[path]
    statuses = (400, 401, 404, 408, 409, 413, 415, 422, 429, 503)
    return {
        "summary": summary,
        "tags": ["generation"],
        "openapi_extra": body_docs(body) | {"parameters": _NAMES},
        "responses": answer_docs(answer, statuses, error=error, events=events, headers=_WHOLE_ONLY | _MARKS),
    }


def token_docs(body: type[BaseModel], answer: type[BaseModel], error: type[BaseModel] = ErrorAnswer) -> Docs:
    """The same for a route that works with tokens."""
    statuses = (400, 401, 404, 408, 413, 415, 429, 503)
    return {
        "tags": ["tokens"],
        "openapi_extra": body_docs(body),
        "responses": answer_docs(answer, statuses, error=error),
    }


def _events(description: str, *kinds: type[BaseModel], ends_with_done: bool = False) -> Docs:
    """A stream: what each event is."""
    contents = [_self_contained(kind) for kind in kinds]
    data: Docs = {"type": "string", "contentMediaType": _WHOLE, "contentSchema": {"anyOf": contents}}
    if ends_with_done:
        data = {"anyOf": [{"const": "[DONE]"}, data]}
    data["description"] = "the event as JSON text"
    name = {"type": "string", "description": "the event's type, where events have names"}
    event = {"type": "object", "required": ["data"], "properties": {"event": name, "data": data}}
    return {"schema": {"description": f"Where `stream` is true: server-sent events. {description}", **event}}


_CHUNKS: Final = (
    "The last one is `[DONE]`; an error after the first event is an event with an `error` object before it. Lines that "
    "begin with a colon keep the connection open. With `stream_options.include_usage` the last object has no choices "
    "and the usage."
)
_GENERATION: Final[dict[str, tuple[type[BaseModel], type[BaseModel], str, Docs]]] = {
    "/v1/chat/completions": (
        ChatAnswer,
        ErrorAnswer,
        "Continue a conversation",
        _events(_CHUNKS, ChatChunk, ErrorAnswer, ends_with_done=True),
    ),
    "/v1/completions": (
        CompletionAnswer,
        ErrorAnswer,
        "Continue texts",
        _events(_CHUNKS, CompletionChunk, ErrorAnswer, ends_with_done=True),
    ),
    "/v1/responses": (
        ResponseAnswer,
        ErrorAnswer,
        "Continue a conversation, in the form of OpenAI's responses",
        _events(
            "From `response.created` to `response.completed`, `response.incomplete` or `response.failed`.",
            ResponseEvent,
        ),
    ),
    "/v1/messages": (
        MessageAnswer,
        AnthropicErrorAnswer,
        "Continue a conversation, in Anthropic's form",
        _events("From `message_start` to `message_stop`, or to `error`.", MessageEvent, AnthropicErrorAnswer),
    ),
}
