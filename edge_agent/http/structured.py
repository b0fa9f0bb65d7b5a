"""What a request wants its answer to follow, as one grammar: OpenAI's and vLLM's fields, tool calls, and thoughts.

A grammar binds what the model says, not what it thinks: where answers are split into thought and content, it begins
after the thought. Tool calls that must come are bound to the format that the model was trained to write.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from edge_agent.http import reasoning
from edge_agent.http.schema import GenerationFields, shown
from edge_agent.http.tool_calls import CLOSE, OPEN, ToolFormat
from edge_agent.http.tools import Tool, ToolUse
from specedge.errors import InvalidRequest
from specedge.grammar.schema import enforceable_schema
from specedge.grammar.spec import GrammarKind, GrammarSpec

Json = dict[str, Any]

_ANY_OBJECT: Final[Json] = {"type": "object"}
_BLANKS: Final[Json] = {"type": "regex", "pattern": r"[ \n]{0,4}"}
_NO_OBJECT: Final[Json] = {"type": "regex", "pattern": r"[ \t\r\n]*[^{ \t\r\n]"}
"""How a text begins that is no call in Llama's format."""


def grammar_of(fields: GenerationFields, format_in: str = "response_format") -> GrammarSpec | None:
    """The grammar that a request names, in whichever field; None when it names none.

    Args:
        fields: the request's.
        format_in: the client's field that `response_format` came in.

    Raises:
        InvalidRequest: names the field, and what is wrong with it.
    """
    wanted = [*_response_format(fields.response_format, format_in), *_structured_outputs(fields), *_guided(fields)]
    if len(wanted) > 1:
        first, second = wanted[0].asked_in, wanted[1].asked_in
        raise InvalidRequest(f"{first} and {second} both say what the answer must follow; only 1 may", param=second)
    for grammar in wanted:
        grammar.validate()
        return grammar
    return None


def chat_grammar(
    wanted: GrammarSpec | None, use: ToolUse, tool_format: ToolFormat, prompt_text: str | None
) -> GrammarSpec | None:
    """The grammar of a chat's whole answer.

    Args:
        wanted: what the request wants the content to follow.
        use: the tools that it may or must call.
        tool_format: how the model writes calls.
        prompt_text: the rendered chat of a model whose answers are split into thought and content; None for others.

    Raises:
        InvalidRequest: the request's fields exclude each other.
    """
    if use.choice == "required":
        if wanted is not None:
            message = f"{wanted.asked_in} says what the content must follow, but tool_choice asks for calls instead"
            raise InvalidRequest(message, param=wanted.asked_in)
        body, asked_in = _calls(use, tool_format), "tools"
    elif wanted is not None:
        is_free = use.choice == "none"
        body = _content(wanted) if is_free else {"type": "or", "elements": [_content(wanted), _calls(use, tool_format)]}
        asked_in = wanted.asked_in
        if is_free and not _thought(prompt_text):
            return wanted
    elif use.choice == "auto" and any(tool.is_strict for tool in use.tools):
        body, asked_in = _free_calls(use, tool_format), "tools"
    else:
        return None
    elements = [*_thought(prompt_text), body]
    tag = {"type": "structural_tag", "format": {"type": "sequence", "elements": elements}}
    grammar = GrammarSpec("structural_tag", _source(tag, asked_in), asked_in)
    grammar.validate()
    return grammar


def _response_format(value: Any, asked_in: str) -> Iterator[GrammarSpec]:
    match value:
        case {"type": "text" | "json_object" as kind, "json_schema": schema} if schema is not None:
            message = f"{asked_in}.json_schema is given, but {asked_in}.type is {kind}"
            raise InvalidRequest(message, param=f"{asked_in}.json_schema")
        case None | {"type": "text"}:
            return
        case {"type": "json_object"}:
            yield GrammarSpec("json_object", asked_in=asked_in)
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            yield GrammarSpec("json_schema", _source(schema, asked_in), asked_in)
        case {"type": "json_schema"}:
            place = f"{asked_in}.schema" if asked_in == "text.format" else f"{asked_in}.json_schema.schema"
            raise InvalidRequest(f"{place} is missing or no object; it must be a JSON schema", param=place)
        case {"type": "structural_tag"}:
            yield GrammarSpec("structural_tag", _source(_whole_tag(value, asked_in), asked_in), asked_in)
        case {"type": kind}:
            message = f"{asked_in}.type is {shown(kind)}; it must be text, json_object, json_schema or structural_tag"
            raise InvalidRequest(message, param=f"{asked_in}.type")
        case _:
            raise InvalidRequest(f"{asked_in} is {shown(value)}; it must be an object with a type", param=asked_in)


def _structured_outputs(fields: GenerationFields) -> Iterator[GrammarSpec]:
    outputs, name = fields.structured_outputs, "structured_outputs"
    if outputs is None:
        return
    wanted = [
        *_grammars(outputs.json_, outputs.regex, outputs.choice, outputs.grammar, (name,) * 4),
        *([GrammarSpec("json_object", asked_in=name)] if outputs.json_object else []),
        *([_given_tag(outputs.structural_tag, name)] if outputs.structural_tag is not None else []),
    ]
    if len(wanted) != 1:
        kinds = "json, regex, choice, grammar, json_object and structural_tag"
        raise InvalidRequest(f"{name} has {len(wanted)} of {kinds}; it must have 1", param=name)
    for option in ("disable_any_whitespace", "whitespace_pattern"):
        if getattr(outputs, option):
            message = f"{name}.{option} is given, which is not supported here; leave it out"
            raise InvalidRequest(message, param=f"{name}.{option}")
    yield from wanted


def _guided(fields: GenerationFields) -> Iterator[GrammarSpec]:
    names = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
    return _grammars(fields.guided_json, fields.guided_regex, fields.guided_choice, fields.guided_grammar, names)


def _grammars(
    schema: Any, regex: str | None, choice: list[str] | None, ebnf: str | None, names: tuple[str, ...]
) -> Iterator[GrammarSpec]:
    """Those that are given; `names` are the fields of each."""
    if schema is not None:
        if not isinstance(schema, dict | str):
            message = f"the schema in {names[0]} is {shown(schema)}; it must be a JSON schema, as an object or as text"
            raise InvalidRequest(message, param=names[0])
        source = schema if isinstance(schema, str) else _source(schema, names[0])
        yield GrammarSpec("json_schema", source, names[0])
    if regex is not None:
        yield GrammarSpec("regex", regex, names[1])
    if choice is not None:
        yield GrammarSpec("choice", _source(choice, names[2]), names[2])
    if ebnf is not None:
        yield GrammarSpec("ebnf", ebnf, names[3])


def _content(grammar: GrammarSpec) -> Json:
    """The grammar as a part of a structural tag."""
    kinds: dict[GrammarKind, Json] = {
        "json_object": {"type": "json_schema", "json_schema": _ANY_OBJECT},
        "regex": {"type": "regex", "pattern": grammar.source},
        "ebnf": {"type": "grammar", "grammar": grammar.source},
    }
    if grammar.kind in kinds:
        return kinds[grammar.kind]
    value = grammar.parsed()
    if grammar.kind == "json_schema":
        return {"type": "json_schema", "json_schema": value}
    if grammar.kind == "choice":
        return {"type": "or", "elements": [{"type": "const_string", "value": text} for text in value]}
    inner = value.get("format")
    if not isinstance(inner, dict):
        raise InvalidRequest("structural_tag has no format; it must be an object", param=grammar.param)
    return inner


def _whole_tag(value: Json, asked_in: str) -> Json:
    """A structural tag in its present form: its older one lists structures and triggers instead of a format."""
    if "structures" not in value:
        if not isinstance(value.get("format"), dict):
            place = f"{asked_in}.format"
            raise InvalidRequest(f"{place} is missing or no object; it must be a structural tag's format", param=place)
        return {"type": "structural_tag", "format": value["format"]}
    match value:
        case {"structures": [*structures], "triggers": [*triggers]}:
            tags = [_older_tag(structure, f"{asked_in}.structures[{i}]") for i, structure in enumerate(structures)]
            return {"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": triggers, "tags": tags}}
    message = f"{asked_in} has structures; structures and triggers must be lists"
    raise InvalidRequest(message, param=f"{asked_in}.structures")


def _older_tag(structure: Any, place: str) -> Json:
    match structure:
        case {"begin": str(begin), "schema": dict(schema), "end": str(end)}:
            content = {"type": "json_schema", "json_schema": schema}
            return {"type": "tag", "begin": begin, "content": content, "end": end}
    raise InvalidRequest(f"{place} is {shown(structure)}; it must have begin, schema and end", param=place)


def _given_tag(source: str, asked_in: str) -> GrammarSpec:
    """A structural tag that came as JSON text."""
    grammar = GrammarSpec("structural_tag", source, asked_in)
    grammar.validate()
    return replace(grammar, source=_source(_whole_tag(grammar.parsed(), asked_in), asked_in))


def _thought(prompt_text: str | None) -> list[Json]:
    """What a model that thinks may write before its content."""
    if prompt_text is None or prompt_text.rstrip().endswith(reasoning.CLOSE):
        return []
    is_open = reasoning.begins_inside(prompt_text)
    thought = {
        "type": "tag",
        "begin": "" if is_open else reasoning.OPEN,
        "content": {"type": "any_text"},
        "end": reasoning.CLOSE,
    }
    whole: Json = {"type": "sequence", "elements": [thought, _BLANKS]}
    return [whole if is_open else {"type": "optional", "content": whole}]


def _calls(use: ToolUse, tool_format: ToolFormat) -> Json:
    """One call or, where that is allowed, several, and nothing else."""
    return {
        "type": "tags_with_separator",
        "tags": [_call(tool, tool_format) for tool in use.tools if not use.named or tool.name in use.named],
        "separator": "\n" if tool_format == "hermes" else "; ",
        "at_least_one": True,
        "stop_after_first": not use.is_parallel,
    }


def _free_calls(use: ToolUse, tool_format: ToolFormat) -> Json:
    """Any text, in which what begins like a call is one."""
    if tool_format == "llama":
        text = {"type": "sequence", "elements": [_NO_OBJECT, {"type": "any_text"}]}
        return {"type": "or", "elements": [_calls(use, tool_format), {"type": "optional", "content": text}]}
    return {
        "type": "triggered_tags",
        "triggers": [OPEN],
        "tags": [_call(tool, tool_format) for tool in use.tools],
        "stop_after_first": not use.is_parallel,
    }


def _call(tool: Tool, tool_format: ToolFormat) -> Json:
    begin, end = (f"{OPEN}\n", f"\n{CLOSE}") if tool_format == "hermes" else ("", "")
    arguments = "arguments" if tool_format == "hermes" else "parameters"
    return {
        "type": "tag",
        "begin": f'{begin}{{"name": "{tool.name}", "{arguments}": ',
        "content": {"type": "json_schema", "json_schema": _parameters(tool)},
        "end": f"}}{end}",
    }


def _parameters(tool: Tool) -> Any:
    """The schema of a tool's arguments; any object where it cannot be enforced and need not be."""
    has_kind = tool.parameters.keys() & {"type", "$ref", "anyOf", "oneOf", "allOf"}
    schema = tool.parameters if has_kind else {**_ANY_OBJECT, **tool.parameters}
    if not tool.is_strict:
        try:
            enforceable_schema(schema, "tools")
        except (InvalidRequest, RecursionError):
            return _ANY_OBJECT
    return schema


def _source(value: Any, asked_in: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise InvalidRequest(f"{asked_in} is nested too deeply", param=asked_in) from None
