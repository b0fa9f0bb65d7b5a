"""A chat's messages, checked and brought to the one form chat templates take: a role and a text."""

from typing import Any, Final

from edge_agent.http.schema import shown
from specedge.errors import InvalidRequest

_ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_UNBUILT: Final = ("tool_calls", "function_call", "audio")


def normalise_messages(messages: Any) -> list[dict[str, str]]:
    """Messages with string contents; `developer` is the newer name of `system`.

    Raises:
        InvalidRequest: names the message and what is wrong with it.
    """
    if not isinstance(messages, list):
        raise InvalidRequest(f"messages is {shown(messages)}; it must be a list of messages", param="messages")
    if not messages:
        raise InvalidRequest("messages is empty; it must have at least 1 message", param="messages")
    return [_normalise(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _normalise(message: Any, place: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise InvalidRequest(f"{place} is {shown(message)}; it must be an object", param=place)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        allowed = ", ".join(_ROLES)
        raise InvalidRequest(f"{place}.role is {shown(role)}; it must be one of {allowed}", param=f"{place}.role")
    for field in _UNBUILT:
        if message.get(field):
            raise InvalidRequest(f"{place}.{field} is not supported here; leave it out", param=f"{place}.{field}")
    return {"role": _ROLES[role], "content": _text(message.get("content"), f"{place}.content")}


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
    if part.get("type") != "text":
        message = f"{place}.type is {shown(part.get('type'))}; only 'text' parts are supported here"
        raise InvalidRequest(message, param=f"{place}.type")
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(f"{place}.text is {shown(text)}; it must be a string", param=f"{place}.text")
    return text
