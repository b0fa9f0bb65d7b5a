"""A chat's messages, checked and brought to the one form chat templates take: a role, a text, and tool calls."""

from typing import Any, Final

from pydantic_core import from_json

from edge_agent.http.schema import shown
from specedge.errors import InvalidRequest

Message = dict[str, Any]

_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_UNBUILT: Final = ("function_call", "audio")


def normalise_messages(messages: Any) -> list[Message]:
    """Messages with string contents; `developer` is the newer name of `system`.

    Raises:
        InvalidRequest: names the message and what is wrong with it.
    """
    if not isinstance(messages, list):
        raise InvalidRequest(f"messages is {shown(messages)}; it must be a list of messages", param="messages")
    if not messages:
        raise InvalidRequest("messages is empty; it must have at least 1 message", param="messages")
    return [_normalise(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _normalise(message: Any, place: str) -> Message:
    if not isinstance(message, dict):
        raise InvalidRequest(f"{place} is {shown(message)}; it must be an object", param=place)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        allowed = ", ".join(_ROLES)
        raise InvalidRequest(f"{place}.role is {shown(role)}; it must be one of {allowed}", param=f"{place}.role")
    for field in _UNBUILT:
        if message.get(field):
            raise InvalidRequest(f"{place}.{field} is not supported here; leave it out", param=f"{place}.{field}")
    content = message.get("content")
    if role == "assistant":
        return _assistant(message, content, place)
    normalised: Message = {"role": _ROLES[role], "content": _text(content, f"{place}.content")}
    if role == "tool":
        for field in ("tool_call_id", "name"):
            if (value := message.get(field)) is not None:
                normalised[field] = _string(value, f"{place}.{field}")
    return normalised


def _assistant(message: Message, content: Any, place: str) -> Message:
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        place += ".tool_calls"
        raise InvalidRequest(f"{place} is {shown(calls)}; it must be a list of calls", param=place)
    # A model that called tools, refused, or was cut in its thoughts has said nothing.
    refusal = message.get("refusal")
    refused = "" if refusal is None else _string(refusal, f"{place}.refusal")
    text = refused if content is None else _text(content, f"{place}.content")
    normalised: Message = {"role": "assistant", "content": text}
    for field in ("reasoning", "reasoning_content"):  # two names of one thing; the second counts more
        if (thought := message.get(field)) is not None and (text := _string(thought, f"{place}.{field}")):
            normalised["reasoning_content"] = text
    if calls:
        normalised["tool_calls"] = [_call(call, f"{place}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return normalised


def _call(call: Any, place: str) -> Message:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise InvalidRequest(f"{place} is {shown(call)}; it must be an object with a function", param=place)
    name = _string(function.get("name"), f"{place}.function.name")
    place_of_arguments = f"{place}.function.arguments"
    given = function.get("arguments")
    written = "{}" if given is None or given == "" else _string(given, place_of_arguments)
    try:
        arguments = from_json(written)
    except ValueError as error:
        raise InvalidRequest(f"{place_of_arguments} is not valid JSON: {error}", param=place_of_arguments) from None
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"{place_of_arguments} must spell a JSON object", param=place_of_arguments)
    return {"id": str(call.get("id", "")), "type": "function", "function": {"name": name, "arguments": arguments}}


def _text(content: Any, place: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        message = f"{place} is {shown(content)}; it must be a string or a list of text parts"
        raise InvalidRequest(message, param=place)
    return "\n".join(_part_text(part, f"{place}[{index}]") for index, part in enumerate(content))


def _part_text(part: Any, place: str) -> str:
    if not isinstance(part, dict):
        raise InvalidRequest(f"{place} is {shown(part)}; it must be an object", param=place)
    if part.get("type") == "refusal":  # what an assistant said instead of an answer
        return _string(part.get("refusal"), f"{place}.refusal")
    if part.get("type") != "text":
        message = f"{place}.type is {shown(part.get('type'))}; only 'text' parts are supported here"
        raise InvalidRequest(message, param=f"{place}.type")
    return _string(part.get("text"), f"{place}.text")


def _string(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{place} is {shown(value)}; it must be a string", param=place)
    return value
