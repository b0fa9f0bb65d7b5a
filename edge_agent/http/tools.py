"""The tools a chat offers its model: checked, and in the form chat templates take."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from edge_agent.http.schema import shown
from specedge.errors import InvalidRequest

MAX_TOOLS: Final = 128
MAX_DESCRIPTION_CHARS: Final = 16_384
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call.

    Attributes:
        parameters: JSON schema of its arguments.
        definition: as the client wrote it, for the chat template.
        is_strict: its arguments follow the schema, even where the model is free not to call it.
    """

    name: str
    parameters: Mapping[str, Any]
    definition: Mapping[str, Any]
    is_strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a chat may do with its tools.

    Attributes:
        tools: in the client's order.
        choice: none: the answer is text; auto: the model decides; required: it calls at least one tool.
        named: the only tools it may call, by name; empty: any.
        is_parallel: more than one call in an answer is allowed.
    """

    tools: tuple[Tool, ...] = ()
    choice: Literal["none", "auto", "required"] = "none"
    named: tuple[str, ...] = ()
    is_parallel: bool = True


def tool_use(tools: Any, tool_choice: Any, parallel_tool_calls: bool | None) -> ToolUse:
    """A request's `tools`, `tool_choice` and `parallel_tool_calls`.

    Raises:
        InvalidRequest: names what is wrong and where.
    """
    known = _tools(tools)
    choice, named = _choice(tool_choice, [tool.name for tool in known])
    return ToolUse(known, choice, named, parallel_tool_calls is not False)


def _tools(tools: Any) -> tuple[Tool, ...]:
    if tools is None:
        return ()
    if not isinstance(tools, list):
        raise InvalidRequest(f"tools is {shown(tools)}; it must be a list of tools", param="tools")
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(f"tools has {len(tools)} tools; it may have at most {MAX_TOOLS}", param="tools")
    known = tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools))
    names = [tool.name for tool in known]
    for index, name in enumerate(names):
        if name in names[:index]:
            place = f"tools[{index}].function.name"
            raise InvalidRequest(f"{place} is {name!r} like another's; names must differ", param=place)
    return known


def _tool(tool: Any, place: str) -> Tool:
    if not isinstance(tool, dict):
        raise InvalidRequest(f"{place} is {shown(tool)}; it must be an object", param=place)
    if tool.get("type") != "function":
        message = f"{place}.type is {shown(tool.get('type'))}; only 'function' tools are supported here"
        raise InvalidRequest(message, param=f"{place}.type")
    function = tool.get("function")
    place += ".function"
    if not isinstance(function, dict):
        raise InvalidRequest(f"{place} is {shown(function)}; it must be an object", param=place)
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        message = f"{place}.name is {shown(name)}; it must have 1 to 64 letters, digits, '_', '-' and '.'"
        raise InvalidRequest(message, param=f"{place}.name")
    if parameters is not None and not isinstance(parameters, dict):
        message = f"{place}.parameters is {shown(parameters)}; it must be a JSON schema object"
        raise InvalidRequest(message, param=f"{place}.parameters")
    description = function.get("description")
    if description is not None and (not isinstance(description, str) or len(description) > MAX_DESCRIPTION_CHARS):
        message = f"{place}.description must be a string of at most {MAX_DESCRIPTION_CHARS} characters"
        raise InvalidRequest(message, param=f"{place}.description")
    strict = function.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise InvalidRequest(f"{place}.strict is {shown(strict)}; it must be true or false", param=f"{place}.strict")
    return Tool(name, parameters or {"type": "object", "properties": {}}, tool, bool(strict))


def _choice(value: Any, names: Sequence[str]) -> tuple[Literal["none", "auto", "required"], tuple[str, ...]]:
    match value:
        case None:
            return ("auto" if names else "none"), ()
        case "none":
            return "none", ()
        case ("auto" | "required") as choice if names:
            return choice, ()
        case {"type": "function", "function": {"name": str(name)}} if name in names:
            return "required", (name,)
        case "auto" | "required" | {"type": "function", "function": {"name": str()}} if not names:
            raise InvalidRequest(f"tool_choice is {shown(value)}, but there are no tools", param="tool_choice")
        case {"type": "function", "function": {"name": str(name)}}:
            message = f"tool_choice names {shown(name)}; the tools are {shown(', '.join(names))}"
            raise InvalidRequest(message, param="tool_choice")
    allowed = 'none, auto, required or {"type": "function", "function": {"name": ...}}'
    raise InvalidRequest(f"tool_choice is {shown(value)}; it must be {allowed}", param="tool_choice")
