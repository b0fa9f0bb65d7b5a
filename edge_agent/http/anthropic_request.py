"""Anthropic's `/v1/messages` body, turned into the one of `/v1/chat/completions`."""

import json
from typing import Annotated, Any, Final

from pydantic import Field, WithJsonSchema

from edge_agent.http.schema import Int, RequestFields, number, parse_fields, shown
from specedge.errors import InvalidRequest

Json = dict[str, Any]
_BLOCKS: Final = {"type": "array", "items": {"type": "object"}}
_TEXT_OR_BLOCKS: Final = [{"type": "string"}, _BLOCKS]
TextOrBlocks = Annotated[Any, WithJsonSchema({"anyOf": [*_TEXT_OR_BLOCKS, {"type": "null"}]})]
Blocks = Annotated[Any, WithJsonSchema({"anyOf": [_BLOCKS, {"type": "null"}]})]
Turns = Annotated[
    Any,
    WithJsonSchema(
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["role", "content"],
                "properties": {
                    "role": {"enum": ["user", "assistant", "system"], "description": "who says it"},
                    "content": {"anyOf": _TEXT_OR_BLOCKS, "description": "a text, or content blocks"},
                },
            },
        }
    ),
]

COUNT_PATH: Final = "/v1/messages/count_tokens"
_SAME: Final = ("model", "max_tokens", "temperature", "top_p", "top_k", "stream", "seed", "priority", "speculation")
_UNBUILT: Final = ("container", "mcp_servers", "output_format")
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}


class CountRequest(RequestFields):
    """Body of `/v1/messages/count_tokens`."""

    model: str | None = Field(None, description="a name of `/v1/models`; left out or empty: the model that is served")
    messages: Turns = Field(description="the conversation; contents are texts, or blocks of texts, calls and results")
    system: TextOrBlocks = Field(None, description="what the model is told before the conversation")
    tools: Blocks = Field(None, description="custom tools: name, description, input_schema")
    tool_choice: dict[str, Any] | None = Field(None, description="type auto, any, none, or tool with a name")
    thinking: dict[str, Any] | None = Field(None, description="type enabled or disabled, for models that can do both")


class MessagesRequest(CountRequest):
    """Body of `/v1/messages`."""

    max_tokens: Int = Field(description="most tokens of the answer, thoughts included; at least 1")
    stream: bool | None = Field(None, description="true: server-sent events as text comes")
    stop_sequences: list[str] | None = Field(None, description="text that ends the answer, at most 16")
    temperature: float | None = number("0 takes the best token; left out: the model's own default", 0, 2)
    top_p: float | None = number("keep the best tokens that together are so probable, above 0; 1 keeps all", 0, 1)
    top_k: Int | None = number("keep so many best tokens; 0 or -1 keeps all", -1)
    seed: Int | None = number("the same seed gives the same text")
    priority: Int | None = number("lower is served earlier; 0 is normal")
    speculation: dict[str, Any] | None = Field(None, description="as in /v1/chat/completions")


def chat_body(body: Json, form: type[CountRequest] = MessagesRequest) -> Json:
    """The chat request that a messages request means.

    Args:
        body: the request's.
        form: what it must look like.

    Raises:
        InvalidRequest: names what is wrong and where.
    """
    parse_fields(form, body)
    for name in _UNBUILT:
        if body.get(name):
            raise InvalidRequest(f"{name} is given, which is not supported here; leave it out", param=name)
    chat: Json = {name: body[name] for name in _SAME if name in body}
    messages = body["messages"]
    if not isinstance(messages, list):
        raise InvalidRequest(f"messages is {shown(messages)}; it must be a list of messages", param="messages")
    chat["messages"] = [
        *_system(body.get("system")),
        *(part for index, message in enumerate(messages) for part in _messages(message, f"messages[{index}]")),
    ]
    if (stops := body.get("stop_sequences")) is not None:
        chat["stop"] = stops
    if (tools := body.get("tools")) is not None and tools != []:
        chat["tools"] = _tools(tools)
    chat |= _tool_choice(body.get("tool_choice"))
    thinking = body.get("thinking")
    if thinking is not None:
        if thinking.get("type") not in ("enabled", "disabled", "adaptive"):
            message = "thinking must be an object of type enabled, disabled or adaptive"
            raise InvalidRequest(message, param="thinking")
        chat["chat_template_kwargs"] = {"enable_thinking": thinking["type"] != "disabled"}
    return chat


def _system(system: Any) -> list[Json]:
    if system is None:
        return []
    text = system if isinstance(system, str) else "\n".join(_texts(system, "system"))
    return [{"role": "system", "content": text}] if text else []


def _messages(message: Any, place: str) -> list[Json]:
    """A message with tool results becomes several, one for each result."""
    role = message.get("role") if isinstance(message, dict) else None
    if role not in ("user", "assistant", "system"):
        raise InvalidRequest(f"{place}.role is {shown(role)}; it must be user or assistant", param=f"{place}.role")
    content = message.get("content")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list):
        place += ".content"
        raise InvalidRequest(f"{place} is {shown(content)}; it must be a string or a list of blocks", param=place)
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Json] = []
    results: list[Json] = []
    for index, block in enumerate(content):
        at = f"{place}.content[{index}]"
        match block:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": "thinking", "thinking": str(thought)}:
                thoughts.append(thought)
            case {"type": "redacted_thinking"}:
                continue
            case {"type": "tool_use", "id": str(call_id), "name": str(name), "input": dict(arguments)}:
                function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
                calls.append({"id": call_id, "type": "function", "function": function})
            case {"type": "tool_result", "tool_use_id": str(call_id)}:
                results.append({"role": "tool", "tool_call_id": call_id, "content": _result(block, at)})
            case {"type": str(kind)}:
                raise InvalidRequest(f"{at} is a malformed or unsupported {shown(kind)} block", param=at)
            case _:
                raise InvalidRequest(f"{at} is {shown(block)}; it must be a content block", param=at)
    said: Json = {"role": role, "content": "\n".join(texts)}
    if thoughts:
        said["reasoning_content"] = "\n".join(thoughts)
    if calls:
        said["tool_calls"] = calls
    return [*results, said] if texts or calls or thoughts or not results else results


def _result(block: Json, place: str) -> str:
    content = block.get("content", "")
    text = content if isinstance(content, str) else "\n".join(_texts(content, f"{place}.content"))
    return f"Error: {text}" if block.get("is_error") else text


def _texts(blocks: Any, place: str) -> list[str]:
    if not isinstance(blocks, list):
        raise InvalidRequest(f"{place} is {shown(blocks)}; it must be a string or a list of text blocks", param=place)
    texts = []
    for index, block in enumerate(blocks):
        match block:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case _:
                at = f"{place}[{index}]"
                raise InvalidRequest(f"{at} is {shown(block)}; only text blocks are supported here", param=at)
    return texts


def _tools(tools: Any) -> Any:
    if not isinstance(tools, list):
        return tools  # refused where chats are
    functions = []
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type", "custom") != "custom":
            place = f"tools[{index}]"
            raise InvalidRequest(f"{place} is {shown(tool)}; only custom tools are supported here", param=place)
        function = {"name": tool.get("name"), "parameters": tool.get("input_schema")}
        if (description := tool.get("description")) is not None:
            function["description"] = description
        functions.append({"type": "function", "function": function})
    return functions


def _tool_choice(choice: Any) -> Json:
    match choice:
        case None:
            return {}
        case {"type": "tool", "name": str(name)}:
            chosen: Any = {"type": "function", "function": {"name": name}}
        case {"type": str(kind)} if kind in _CHOICES:
            chosen = _CHOICES[kind]
        case _:
            message = f"tool_choice is {shown(choice)}; its type must be auto, any, none, or tool with a name"
            raise InvalidRequest(message, param="tool_choice")
    return {"tool_choice": chosen} | ({"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else {})
