"""OpenAI's `/v1/responses` body, turned into the one of `/v1/chat/completions`. Stateless: nothing is stored."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Any, Final

from pydantic import Field, WithJsonSchema

from edge_agent.http.own_words import own_words
from edge_agent.http.schema import Int, SamplingFields, number, parse_fields, shown
from specedge.errors import InvalidRequest

Json = dict[str, Any]

_SAME: Final = (*SamplingFields.model_fields, "chat_template_kwargs", "parallel_tool_calls")
_TEXT_PARTS: Final = ("input_text", "output_text", "text")
_UNBUILT: Final = (
    "background",
    "conversation",
    "enable_response_messages",
    "image",
    "max_tool_calls",
    "mm_processor_kwargs",
    "moderation",
    "previous_input_messages",
    "previous_response",
    "previous_response_id",
    "prompt",
)
_LOGPROBS: Final = "message.output_text.logprobs"
_CHAT_NAMES: Final = {
    r"^messages\b": "input",
    r"\bmax_completion_tokens\b": "max_output_tokens",
    r"^(tools\[\d+\])\.function\b": r"\1",
    r"^reasoning_effort\b": "reasoning.effort",
    r"^verbosity\b": "text.verbosity",
}
_OBJECTS: Final = {"type": "array", "items": {"type": "object"}}
Input = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string"}, _OBJECTS]})]
Objects = Annotated[Any, WithJsonSchema({"anyOf": [_OBJECTS, {"type": "null"}]})]
ToolChoice = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}, {"type": "null"}]})]


class ResponsesRequest(SamplingFields):
    """Body of `/v1/responses`."""

    input: Input = Field(description="a text, or items: messages, function calls and their results, thoughts")
    instructions: str | None = Field(None, description="what the model is told before the input")
    max_output_tokens: Int | None = number("most tokens of the answer, thoughts included", 1)
    tools: Objects = Field(None, description="functions that the model may call")
    tool_choice: ToolChoice = Field(None, description="none, auto, required, or a function by type and name")
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call in an answer")
    text: dict[str, Any] | None = Field(
        None, description="format: text, json_object or json_schema; a verbosity other than medium is refused"
    )
    reasoning: dict[str, Any] | None = Field(None, description="effort: as reasoning_effort in /v1/chat/completions")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="variables for the model's chat template")
    include: list[str] | None = Field(
        None, description=f"{_LOGPROBS}: log-probabilities of the text; the rest changes nothing"
    )
    top_logprobs: Int | None = number("log-probabilities, and so many best tokens beside each", 0, 20)
    store: bool | None = Field(None, description="taken as false: nothing is stored")
    metadata: dict[str, Any] | None = Field(None, description="comes back with the response")


def chat_body(body: Json) -> tuple[Json, AbstractContextManager[None]]:
    """The chat request that a responses request means, and a context in which its refusals name the fields of this one.

    Raises:
        InvalidRequest: names what is wrong and where.
    """
    fields = parse_fields(ResponsesRequest, body)
    for name in _UNBUILT:
        if body.get(name):
            raise InvalidRequest(f"{name} is given, which is not supported here; leave it out", param=name)
    chat: Json = {name: body[name] for name in _SAME if name in body}
    chat["max_completion_tokens"] = fields.max_output_tokens
    if fields.top_logprobs or _LOGPROBS in (fields.include or ()):
        chat |= {"logprobs": True, "top_logprobs": fields.top_logprobs}
    messages, places = _messages(fields.input)
    if fields.instructions is not None:
        messages, places = [{"role": "system", "content": fields.instructions}, *messages], ["instructions", *places]
    chat["messages"] = messages
    if fields.tools:
        chat["tools"] = _tools(fields.tools)
    if fields.tool_choice is not None:
        chat["tool_choice"] = _tool_choice(fields.tool_choice)
    if fields.text is not None:
        chat["verbosity"] = fields.text.get("verbosity")
        if (wanted := fields.text.get("format")) is not None:
            chat["response_format"] = _format(wanted)
    if fields.reasoning is not None:
        chat["reasoning_effort"] = fields.reasoning.get("effort")
    return chat, own_words(_CHAT_NAMES, places)


def _messages(value: Any) -> tuple[list[Json], Sequence[str]]:
    """Messages, and where each of them begins in the input."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}], ["input"]
    if not isinstance(value, list):
        raise InvalidRequest(f"input is {shown(value)}; it must be a string or a list of items", param="input")
    messages: list[Json] = []
    places: list[str] = []
    for index, item in enumerate(value):
        _add_item(messages, item, f"input[{index}]")
        places += [f"input[{index}]"] * (len(messages) - len(places))
    return messages, places


def _add_item(messages: list[Json], item: Any, place: str) -> None:
    """Calls and thoughts belong to the assistant's message at hand; everything else is one of its own."""
    match item:
        case {"type": "function_call", "call_id": str(call_id), "name": str(name), "arguments": str(arguments)}:
            function = {"name": name, "arguments": arguments}
            said = _said(messages)
            said.setdefault("tool_calls", []).append({"id": call_id, "type": "function", "function": function})
        case {"type": "function_call_output", "call_id": str(call_id), "output": output}:
            messages.append({"role": "tool", "tool_call_id": call_id, "content": _text(output, f"{place}.output")})
        case {"type": "reasoning"}:
            parts = [*(item.get("content") or []), *(item.get("summary") or [])]
            texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
            messages.append({"role": "assistant", "content": "", "reasoning_content": "\n".join(texts)})
        case {"role": str(role), "content": content} if item.get("type", "message") == "message":
            text = _text(content, f"{place}.content")
            if role == "assistant" and messages and set(messages[-1]) == {"role", "content", "reasoning_content"}:
                messages[-1]["content"] = text
            else:
                messages.append({"role": role, "content": text})
        case _:
            kind = item.get("type", "message") if isinstance(item, dict) else item
            raise InvalidRequest(f"{place} is a malformed or unsupported {shown(kind)} item", param=place)


def _said(messages: list[Json]) -> Json:
    """The assistant's message that a call belongs to."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _text(content: Any, place: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{place} is {shown(content)}; it must be a string or a list of parts", param=place)
    texts = []
    for index, part in enumerate(content):
        match part:
            case {"type": str(kind), "text": str(text)} if kind in _TEXT_PARTS:
                texts.append(text)
            case _:
                at = f"{place}[{index}]"
                raise InvalidRequest(f"{at} is {shown(part)}; only text parts are supported here", param=at)
    return "\n".join(texts)


def _tools(tools: Any) -> Any:
    if not isinstance(tools, list):
        return tools  # refused where chats are
    functions = []
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            place = f"tools[{index}]"
            raise InvalidRequest(f"{place} is {shown(tool)}; only function tools are supported here", param=place)
        function = {name: value for name, value in tool.items() if name != "type" and value is not None}
        functions.append({"type": "function", "function": function})
    return functions


def _tool_choice(choice: Any) -> Any:
    match choice:
        case {"type": "function", "name": str(name)}:
            return {"type": "function", "function": {"name": name}}
    return choice


def _format(wanted: Any) -> Any:
    """Chats keep a schema one level deeper."""
    match wanted:
        case {"type": "json_schema", **schema}:
            return {"type": "json_schema", "json_schema": schema}
    return wanted
