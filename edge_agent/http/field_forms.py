"""What fields that take several forms look like, for `/openapi.json`; the modules that use them check them."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import WithJsonSchema

Schema = dict[str, Any]


def _object(required: Sequence[str], **properties: Any) -> Schema:
    return {"type": "object", "required": list(required), "properties": properties}


def _string(description: str, **limits: Any) -> Schema:
    return {"type": "string", "description": description, **limits}


def _string_or_null(description: str) -> Schema:
    return {"type": ["string", "null"], "description": description}


def _any_of(*forms: Schema, description: str | None = None) -> Schema:
    return {"anyOf": list(forms)} | ({} if description is None else {"description": description})


_NULL: Final[Schema] = {"type": "null"}
_TOKEN_ID: Final[Schema] = {"type": "integer", "minimum": 0}
_IDS: Final[Schema] = {"type": "array", "minItems": 1, "items": _TOKEN_ID}
_STOP: Final[Schema] = {"type": "string", "minLength": 1}
_TEXT_PART: Final = _object(("type", "text"), type={"const": "text"}, text=_string("its text"))
_TEXT: Final = ({"type": "string"}, {"type": "array", "items": _TEXT_PART})
_SAID: Final = _any_of(*_TEXT, description="a text, or parts of text")
_FUNCTION: Final = _object(
    ("name",),
    name=_string("what was called"),
    arguments={"type": ["string", "null"], "description": "JSON text"},
)
_CALL: Final = _object(
    ("function",),
    id={"description": "what the tool's result names"},
    function={**_FUNCTION, "description": "what the model called"},
)
_MESSAGES: Final[Schema] = {
    "type": "array",
    "minItems": 1,
    "items": _any_of(
        _object(
            ("role", "content"),
            role={"enum": ["system", "developer", "user"], "description": "developer is the newer name of system"},
            content=_SAID,
        ),
        _object(
            ("role",),
            role={"const": "assistant"},
            content=_any_of(*_TEXT, _NULL, description="a text, or parts of text or refusals"),
            tool_calls=_any_of({"type": "array", "items": _CALL}, _NULL, description="what the model called"),
            refusal=_string_or_null("what stands for a content that is null"),
            reasoning_content=_string_or_null("what the model thought"),
            reasoning=_string_or_null("the same, under its other name"),
        ),
        _object(
            ("role", "content"),
            role={"const": "tool"},
            content=_SAID,
            tool_call_id=_string_or_null("of the call that this is the result of"),
            name=_string_or_null("of the tool"),
        ),
    ),
}
_TOOL: Final = _object(
    ("type", "function"),
    type={"const": "function"},
    function={
        **_object(
            ("name",),
            name=_string("how the model calls it", pattern="^[A-Za-z0-9_.-]{1,64}$"),
            description=_string_or_null("what the model is told of it"),
            parameters={"type": ["object", "null"], "description": "JSON schema of the arguments"},
            strict={"type": ["boolean", "null"], "description": "true: arguments always follow the schema"},
        ),
        "description": "what may be called",
    },
)
_NAMED: Final = _object(
    ("type", "function"),
    type={"const": "function"},
    function={**_object(("name",), name=_string("of one of the tools")), "description": "what must be called"},
)
_JSON_SCHEMA: Final = _object(
    ("schema",), name={"description": "not looked at"}, schema={"type": "object", "description": "a JSON schema"}
)
_FORMAT: Final = _object(
    ("type",),
    type={"enum": ["text", "json_object", "json_schema", "structural_tag"], "description": "what kind of text"},
    json_schema={**_JSON_SCHEMA, "description": "with json_schema"},
    format={"description": "with structural_tag: its format, as xgrammar has it"},
    structures={"description": "its older form: a list of objects with begin, schema and end"},
    triggers={"description": "with structures: what each begin begins with"},
)

Stop = Annotated[Any, WithJsonSchema(_any_of(_STOP, {"type": "array", "maxItems": 16, "items": _STOP}, _NULL))]
Prompt = Annotated[
    Any,
    WithJsonSchema(
        _any_of(
            {"type": "string"},
            {"type": "array", "minItems": 1, "items": {"type": "string"}},
            _IDS,
            {"type": "array", "minItems": 1, "items": _IDS},
        )
    ),
]
Messages = Annotated[Any, WithJsonSchema(_MESSAGES)]
OptionalMessages = Annotated[Any, WithJsonSchema(_any_of(_MESSAGES, _NULL))]
Tools = Annotated[Any, WithJsonSchema(_any_of({"type": "array", "maxItems": 128, "items": _TOOL}, _NULL))]
ToolChoice = Annotated[Any, WithJsonSchema(_any_of({"enum": ["none", "auto", "required", None]}, _NAMED))]
Prediction = Annotated[
    Any,
    WithJsonSchema(_object(("type", "content"), type={"const": "content"}, content=_SAID)),
]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
ResponseFormat = Annotated[Any, WithJsonSchema(_any_of(_FORMAT, _NULL))]
JsonSchema = Annotated[Any, WithJsonSchema(_any_of({"type": "object"}, {"type": "string"}, _NULL))]
