"""The bodies of both generation endpoints as clients write them.

Every field may be left out or null, and unknown ones are ignored. Only types are checked here; ranges are checked by
`SamplingParams.validate`, which the verifier trusts too.
"""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from specedge.errors import InvalidRequest

_MAX_SHOWN_CHARS = 60

Int = Annotated[int, Field(ge=-(2**63), le=2**64 - 1)]
Stop = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})]
Prompt = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}},
                {"type": "array", "items": {"type": "integer"}},
                {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
            ]
        }
    ),
]
Messages = Annotated[
    Any,
    WithJsonSchema(
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["role", "content"],
                "properties": {
                    "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
                    "content": {
                        "anyOf": [
                            {"type": "string"},
                            {"type": "array", "items": {"type": "object", "properties": {"text": {"type": "string"}}}},
                        ]
                    },
                },
            },
        }
    ),
]


Tools = Annotated[
    Any,
    WithJsonSchema(
        {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "function"],
                "properties": {
                    "type": {"const": "function"},
                    "function": {
                        "type": "object",
                        "required": ["name"],
                        "properties": {
                            "name": {"type": "string"},
                            "description": {"type": "string"},
                            "parameters": {"type": "object"},
                        },
                    },
                },
            },
        }
    ),
]
ToolChoice = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["none", "auto", "required"]},
                {
                    "type": "object",
                    "required": ["type", "function"],
                    "properties": {
                        "type": {"const": "function"},
                        "function": {
                            "type": "object",
                            "required": ["name"],
                            "properties": {"name": {"type": "string"}},
                        },
                    },
                },
            ]
        }
    ),
]
ResponseFormat = Annotated[
    Any,
    WithJsonSchema(
        {
            "type": "object",
            "required": ["type"],
            "properties": {
                "type": {"enum": ["text", "json_object", "json_schema"]},
                "json_schema": {
                    "type": "object",
                    "required": ["schema"],
                    "properties": {"name": {"type": "string"}, "schema": {"type": "object"}},
                },
            },
        }
    ),
]
JsonSchema = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "string"}]})]


class RequestFields(BaseModel):
    """A body's fields: strict about types, and blind to what it does not know."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


def _inline(part: type[BaseModel]) -> WithJsonSchema:
    """A part's schema in place, since the docs of a body hold no references."""
    return WithJsonSchema(part.model_json_schema())


class StreamOptions(RequestFields):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Speculation(RequestFields):
    """A request's wishes about drafting."""

    enabled: bool | None = Field(None, description="false: decode without drafts")
    budget: Int | None = Field(None, description="most draft nodes alive at a time, 1 to 4096")


class StructuredOutputs(RequestFields):
    """What the answer must follow: one of these."""

    json_: JsonSchema = Field(None, alias="json", description="a JSON schema")
    regex: str | None = Field(None, description="a regular expression that the whole answer matches")
    choice: list[str] | None = Field(None, description="the answer is one of these")
    grammar: str | None = Field(None, description="EBNF as in GBNF, with a rule named root")
    json_object: bool | None = Field(None, description="true: any JSON object")
    structural_tag: str | None = Field(None, description="a structural tag of xgrammar, in JSON")


class GenerationFields(RequestFields):
    """What both endpoints take."""

    model: str | None = None
    stream: bool | None = None
    stream_options: Annotated[StreamOptions | None, _inline(StreamOptions)] = None
    n: Int | None = Field(None, description="answers to each prompt, 1 to 8")
    stop: Stop = None
    stop_token_ids: list[Int] | None = None
    include_stop_str_in_output: bool | None = Field(None, description="true: the text ends with what stopped it")
    skip_special_tokens: bool | None = Field(None, description="false: special tokens are part of the text")
    max_tokens: Int | None = None
    min_tokens: Int | None = None
    ignore_eos: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int | None = Field(None, description="0 or -1 keeps all tokens")
    min_p: float | None = None
    seed: Int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    priority: Int | None = Field(None, description="lower is served earlier; 0 is normal")
    speculation: Annotated[Speculation | None, _inline(Speculation)] = Field(
        None, description="how this request is drafted for; the text is the same"
    )
    response_format: ResponseFormat = Field(None, description="what the answer must follow, in OpenAI's form")
    structured_outputs: Annotated[StructuredOutputs | None, _inline(StructuredOutputs)] = Field(
        None, description="what the answer must follow, in vLLM's form"
    )
    guided_json: JsonSchema = Field(None, description="older form of structured_outputs.json")
    guided_regex: str | None = Field(None, description="older form of structured_outputs.regex")
    guided_choice: list[str] | None = Field(None, description="older form of structured_outputs.choice")
    guided_grammar: str | None = Field(None, description="older form of structured_outputs.grammar")


class TemplateFields(RequestFields):
    """How a conversation becomes a prompt."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="variables for the model's chat template")


class ChatRequest(GenerationFields, TemplateFields):
    """Body of `/v1/chat/completions`."""

    messages: Messages
    tools: Tools = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: Int | None = Field(None, description="takes precedence over max_tokens")
    include_reasoning: bool | None = Field(None, description="false: leave out what the model thinks before it answers")


class CompletionRequest(GenerationFields):
    """Body of `/v1/completions`."""

    prompt: Prompt
    add_special_tokens: bool | None = None


class TokenizeRequest(TemplateFields):
    """Body of `/tokenize`: a text or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages = None
    add_special_tokens: bool | None = Field(None, description="false: a text gets no beginning-of-text token")
    return_token_strs: bool | None = Field(None, description="true: the vocabulary's entries too")


class DetokenizeRequest(RequestFields):
    """Body of `/detokenize`."""

    model: str | None = None
    tokens: list[Int]


RequestModel = TypeVar("RequestModel", bound=BaseModel)


def parse_fields(model: type[RequestModel], payload: dict[str, Any]) -> RequestModel:
    """The payload's known fields with the right types.

    Raises:
        InvalidRequest: names the first field of a wrong type, what it holds and what it must be.
    """
    try:
        return model.model_validate(payload)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
    param = field_path(first["loc"])
    if first["type"] == "missing":
        raise InvalidRequest(f"{param} is required", param=param)
    expected = first["msg"].removeprefix("Input should be ")
    raise InvalidRequest(f"{param} is {shown(first['input'])}; it should be {expected}", param=param)


def field_path(location: tuple[int | str, ...]) -> str:
    """`("messages", 0, "role")` as clients write it: `messages[0].role`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path


def shown(value: Any) -> str:
    """A client's value in an error message, cut to a bounded length."""
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "..."
