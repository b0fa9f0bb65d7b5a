"""Which grammar a request's fields mean, and what an answer bound by it may say."""

import json

import pytest
from grammar_support import compiler, ids

from edge_agent.http.schema import ChatRequest, parse_fields
from edge_agent.http.structured import chat_grammar, grammar_of
from edge_agent.http.tools import ToolUse, tool_use
from specedge.errors import InvalidRequest
from specedge.grammar.spec import GrammarSpec

MESSAGES = [{"role": "user", "content": "Hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
NO_TOOLS = ToolUse()


def fields(**values: object) -> ChatRequest:
    return parse_fields(ChatRequest, {"messages": MESSAGES, **values})


def tool(name: str, parameters: object = None, **values: object) -> dict[str, object]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **values}}


def admits(grammar: GrammarSpec | None, text: str) -> bool:
    assert grammar is not None
    state = compiler().compile(grammar).start()
    tokens = ids(text)
    return state.accept(tokens) == len(tokens) and state.is_complete


@pytest.mark.parametrize(
    ("values", "kind", "source", "asked_in"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", "", "response_format"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": SCHEMA, "strict": True},
                }
            },
            "json_schema",
            json.dumps(SCHEMA),
            "response_format",
        ),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", json.dumps(SCHEMA), "structured_outputs"),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, "json_schema", json.dumps(SCHEMA), "structured_outputs"),
        ({"structured_outputs": {"json_object": True}}, "json_object", "", "structured_outputs"),
        ({"structured_outputs": {"regex": "a+", "choice": None}}, "regex", "a+", "structured_outputs"),
        ({"guided_regex": "a+"}, "regex", "a+", "guided_regex"),
        ({"guided_choice": ["ä", "b"]}, "choice", '["ä", "b"]', "guided_choice"),
        ({"guided_grammar": 'root ::= "a"'}, "ebnf", 'root ::= "a"', "guided_grammar"),
    ],
)
def test_every_field_that_names_a_grammar(values: dict[str, object], kind: str, source: str, asked_in: str) -> None:
    found = grammar_of(fields(**values))
    assert found == GrammarSpec(kind, source)  # type: ignore[arg-type]
    assert found.param == asked_in


@pytest.mark.parametrize("values", [{}, {"response_format": {"type": "text"}}, {"structured_outputs": None}])
def test_most_requests_name_none(values: dict[str, object]) -> None:
    assert grammar_of(fields(**values)) is None
    assert chat_grammar(None, NO_TOOLS, "hermes", None) is None
    assert chat_grammar(None, tool_use([tool("f")], None, None), "hermes", "<think>") is None


@pytest.mark.parametrize(
    ("values", "param", "said"),
    [
        ({"response_format": "json"}, "response_format", "an object with a type"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "'xml'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "missing"),
        ({"structured_outputs": {"json": True}}, "structured_outputs", "as an object or as text"),
        ({"guided_json": [1]}, "guided_json", "as an object or as text"),
        (
            {"response_format": {"type": "json_object", "json_schema": {}}},
            "response_format.json_schema",
            "is given, but response_format.type is json_object",
        ),
        ({"structured_outputs": {}}, "structured_outputs", "has 0 of"),
        ({"structured_outputs": {"regex": "a", "json_object": True}}, "structured_outputs", "has 2 of"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex", "string"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.format", "missing"),
        ({"response_format": {"type": "structural_tag", "structures": 1}}, "response_format.structures", "lists"),
        (
            {"response_format": {"type": "structural_tag", "structures": [{}], "triggers": []}},
            "response_format.structures[0]",
            "begin, schema and end",
        ),
        ({"structured_outputs": {"structural_tag": "[]"}}, "structured_outputs", "a JSON object"),
        (
            {"structured_outputs": {"json": SCHEMA, "whitespace_pattern": " "}},
            "structured_outputs.whitespace_pattern",
            "not supported",
        ),
        (
            {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
            "structured_outputs.disable_any_whitespace",
            "not supported",
        ),
        ({"guided_json": "{"}, "guided_json", "not JSON"),
        ({"guided_json": {"a": "\ud800"}}, "guided_json", "surrogate"),
        ({"guided_choice": []}, "guided_choice", "at least one string"),
        ({"guided_regex": "a" * 300_000}, "guided_regex", "at most 262144"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex", "only 1 may"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice", "only 1 may"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, object], param: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        grammar_of(fields(**values))
    assert caught.value.param == param


def test_content_and_calls_that_must_come_exclude_each_other() -> None:
    use = tool_use([tool("f")], "required", None)
    with pytest.raises(InvalidRequest, match="tool_choice asks for calls instead") as caught:
        chat_grammar(GrammarSpec("json_object", asked_in="response_format"), use, "hermes", None)
    assert caught.value.param == "response_format"


def test_a_grammar_begins_after_the_thought() -> None:
    wanted = GrammarSpec("choice", '["yes", "no"]', "guided_choice")
    free = chat_grammar(wanted, NO_TOOLS, "hermes", "<|im_start|>assistant\n")
    opened = chat_grammar(wanted, NO_TOOLS, "hermes", "<|im_start|>assistant\n<think>\n")
    closed = chat_grammar(wanted, NO_TOOLS, "hermes", "<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert closed == wanted
    assert admits(free, "yes") and admits(free, "<think>\nno < yes?\n</think>\n\nyes")
    assert not admits(free, "<think>yes") and not admits(free, "hm yes")
    assert admits(opened, "hm, </b> yes\n</think>\n\nno") and not admits(opened, "yes")
    assert free is not None and free.param == "guided_choice"


@pytest.mark.parametrize("kind", ["json_object", "json_schema", "regex", "ebnf"])
def test_every_kind_can_follow_a_thought(kind: str) -> None:
    sources = {"json_schema": json.dumps(SCHEMA), "regex": r'\{"a": \d\}', "ebnf": r'root ::= "{\"a\": " [0-9] "}"'}
    wanted = GrammarSpec(kind, sources.get(kind, ""))  # type: ignore[arg-type]
    grammar = chat_grammar(wanted, NO_TOOLS, "hermes", "<think>")
    assert admits(grammar, 'why?</think>{"a": 5}')
    assert not admits(grammar, 'why?</think>"a"')


@pytest.mark.parametrize(
    ("tool_format", "one", "two"),
    [
        (
            "hermes",
            '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
            '<tool_call>\n{"name": "g", "arguments": {"any": []}}\n</tool_call>',
        ),
        ("llama", '{"name": "f", "parameters": {"a": 1}}', '{"name": "g", "parameters": {}}'),
    ],
)
def test_calls_are_written_in_the_models_own_format(tool_format: str, one: str, two: str) -> None:
    between = "\n" if tool_format == "hermes" else "; "
    tools = [tool("f", SCHEMA), tool("g")]
    several = chat_grammar(None, tool_use(tools, "required", None), tool_format, None)  # type: ignore[arg-type]
    single = chat_grammar(None, tool_use(tools, "required", False), tool_format, None)  # type: ignore[arg-type]
    choice = {"type": "function", "function": {"name": "f"}}
    named = chat_grammar(None, tool_use(tools, choice, False), tool_format, None)  # type: ignore[arg-type]
    assert admits(several, one) and admits(several, one + between + one)
    assert not admits(several, "") and not admits(several, "text") and not admits(several, one.replace("1", '"x"'))
    assert admits(single, one) and not admits(single, one + between + one)
    assert admits(named, one) and not admits(named, one.replace('"f"', '"g"'))
    assert several is not None and several.param == "tools"
    assert admits(several, one + between + two) and admits(single, two)


def test_a_structural_tag_comes_in_three_forms() -> None:
    kind = {"type": "structural_tag"}
    older = {"structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}], "triggers": ["<f"]}
    content = {"type": "json_schema", "json_schema": SCHEMA}
    tag = {"type": "tag", "begin": "<f>", "content": content, "end": "</f>"}
    newer = {"format": {"type": "triggered_tags", "triggers": ["<f"], "tags": [tag]}}
    found = {
        grammar_of(fields(response_format={**kind, **older})),
        grammar_of(fields(response_format={**kind, **newer})),
        grammar_of(fields(structured_outputs={"structural_tag": json.dumps({**kind, **newer})})),
        grammar_of(fields(structured_outputs={"structural_tag": json.dumps(older)})),
    }
    (grammar,) = found
    assert admits(grammar, 'so <f>{"a": 1}</f> it is') and admits(grammar, "no tag")
    assert not admits(grammar, 'so <f>{"a": "x"}</f> it is')


def test_options_of_structured_outputs_are_never_ignored() -> None:
    closed = grammar_of(fields(structured_outputs={"json": SCHEMA, "disable_additional_properties": True}))
    assert admits(closed, '{"a": 1}') and not admits(closed, '{"a": 1, "b": 2}')


def test_a_free_answer_in_llamas_format_holds_strict_tools_to_their_schemas() -> None:
    tools = [tool("f", SCHEMA, strict=True)]
    grammar = chat_grammar(None, tool_use(tools, "auto", None), "llama", None)
    single = chat_grammar(None, tool_use(tools, "auto", False), "llama", None)
    call = '{"name": "f", "parameters": {"a": 1}}'
    assert all(admits(grammar, text) for text in ("", "no call", '\n Like {"a": 1}.', call, f"{call}; {call}"))
    assert not any(admits(grammar, text) for text in (call.replace("1", "true"), '{"b": 1}', " \n{", call + "text"))
    assert admits(single, call) and not admits(single, f"{call}; {call}")
    thinking = chat_grammar(None, tool_use(tools, None, None), "llama", "<think>")
    assert admits(thinking, f"{{?</think>\n{call}") and admits(thinking, "?</think>\nno call")
    assert not admits(thinking, '?</think>\n{"b": 1}')


def test_a_free_answer_holds_strict_tools_to_their_schemas() -> None:
    single = chat_grammar(None, tool_use([tool("f", SCHEMA, strict=True)], None, False), "hermes", None)
    grammar = chat_grammar(None, tool_use([tool("f", SCHEMA, strict=True)], None, None), "hermes", None)
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    assert admits(grammar, "no call at all") and admits(grammar, f"Let me see. {call}")
    assert admits(grammar, f"{call} {call}") and admits(single, call) and not admits(single, f"{call} {call}")
    assert not admits(grammar, "Let me see. " + call.replace("1", "true"))


def test_content_with_a_grammar_may_still_be_a_call() -> None:
    wanted = GrammarSpec("json_schema", json.dumps(SCHEMA), "response_format")
    grammar = chat_grammar(wanted, tool_use([tool("f")], "auto", None), "hermes", None)
    assert admits(grammar, '{"a": 1}')
    assert admits(grammar, '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>')
    assert not admits(grammar, "text")


def test_a_schema_that_cannot_be_enforced_binds_strict_tools_only() -> None:
    schema = {"type": "object", "not": {"required": ["b"]}}
    loose = chat_grammar(None, tool_use([tool("f", schema)], "required", None), "hermes", None)
    assert admits(loose, '<tool_call>\n{"name": "f", "arguments": {"b": 1}}\n</tool_call>')
    strict = chat_grammar(None, tool_use([tool("f", schema, strict=True)], "required", None), "hermes", None)
    assert strict is not None
    with pytest.raises(InvalidRequest, match="uses not") as caught:
        compiler().compile(strict)
    assert caught.value.param == "tools"
