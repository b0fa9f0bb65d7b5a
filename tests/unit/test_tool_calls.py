"""Tool calls are found in an answer's text however it was cut, and their arguments arrive as the model wrote them."""

import json
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.http.delta import ChainedOutput, Delta, joined
from edge_agent.http.json_call import JsonCall
from edge_agent.http.reasoning import ReasoningOutput
from edge_agent.http.tool_calls import ToolFormat, format_of_template, tool_output

WEATHER = '{"name": "weather", "arguments": {"city": "Oslo \\"}</tool_call>", "days": [1, {"a": 2}]}}'
NESTED = '{"city": "Oslo \\"}</tool_call>", "days": [1, {"a": 2}]}'

CASES: list[tuple[ToolFormat, str, str, list[tuple[str, str]]]] = [
    ("hermes", "Just text.", "Just text.", []),
    ("hermes", f"<tool_call>\n{WEATHER}\n</tool_call>", "", [("weather", NESTED)]),
    ("hermes", f"Let me look. \n<tool_call>{WEATHER}</tool_call>\n", "Let me look.", [("weather", NESTED)]),
    (
        "hermes",
        '<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>\n'
        '<tool_call>\n{"name": "b", "arguments": {"x": 1}}\n</tool_call>',
        "",
        [("a", "{}"), ("b", '{"x": 1}')],
    ),
    ("hermes", '<tool_call>{"arguments": {"x": 1}, "name": "a"}</tool_call>', "", [("a", '{"x": 1}')]),
    ("hermes", '<tool_call>{"name": "a"}</tool_call>', "", [("a", "{}")]),
    ("hermes", '<tool_call>{"name": "a", "arguments": "{\\"x\\": 1}"}</tool_call>', "", [("a", '{"x": 1}')]),
    ("hermes", '<tool_call>{"name": "a", "arguments": {"x": "cut o', "", [("a", '{"x": "cut o')]),
    ("hermes", "<tool_call>none</tool_call>", "<tool_call>none</tool_call>", []),
    ("hermes", '<tool_call>{"other": 1}</tool_call>', '<tool_call>{"other": 1}</tool_call>', []),
    ("hermes", "a <tool", "a <tool", []),
    ("hermes", f"<tool_call>{WEATHER}</tool_call> \n then", "then", [("weather", NESTED)]),
    ("hermes", f"<tool_call>{WEATHER} then", "then", [("weather", NESTED)]),
    ("llama", "Just text.", "Just text.", []),
    ("llama", '{"name": "a", "parameters": {"x": 1}}', "", [("a", '{"x": 1}')]),
    (
        "llama",
        '{"type": "function", "name": "a", "parameters": {}}; {"name": "b", "parameters": {}}',
        "",
        [("a", "{}"), ("b", "{}")],
    ),
    ("llama", '{"answer": 3}', '{"answer": 3}', []),
    ("llama", "[1, 2]", "[1, 2]", []),
    ("llama", '{"na', '{"na', []),
]


def parse(tool_format: ToolFormat, pieces: list[str]) -> Delta:
    numbers = count()
    parser = tool_output(tool_format, lambda: f"call-{next(numbers)}")
    return joined([*map(parser.feed, pieces), parser.end()])


@pytest.mark.parametrize(("tool_format", "text", "content", "calls"), CASES)
def test_calls_and_content(tool_format: ToolFormat, text: str, content: str, calls: list[tuple[str, str]]) -> None:
    for size in (1, 2, 7, 1000):
        found = parse(tool_format, [text[i : i + size] for i in range(0, len(text), size)])
        assert found.content == content
        assert [(call.name, call.arguments) for call in found.tool_calls] == calls
        assert [(call.index, call.id) for call in found.tool_calls] == [(i, f"call-{i}") for i in range(len(calls))]


PARTS = ["<tool_call>", "</tool_call>", '{"name":"a",', '"arguments":{', '"x":"}', '\\"', '"', "}", "}}", "[", ",", "b"]


@given(st.sampled_from(["hermes", "llama"]), st.lists(st.sampled_from([*PARTS, " ", "\n"]), max_size=12))
def test_the_cuts_do_not_matter(tool_format: ToolFormat, pieces: list[str]) -> None:
    whole = "".join(pieces)
    assert parse(tool_format, pieces) == parse(tool_format, [whole]) == parse(tool_format, list(whole))


def test_arguments_stream_as_they_are_written() -> None:
    parser = tool_output("hermes", lambda: "id")
    text = f"<tool_call>\n{WEATHER}"
    first = text.index("Oslo")
    told = joined([parser.feed(character) for character in text[:first]])
    assert [(call.name, call.arguments) for call in told.tool_calls] == [("weather", '{"city": "')]
    assert parser.feed("Os").tool_calls[0].arguments == "Os"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_any_json_is_read_back(value: Any) -> None:
    call = JsonCall()
    rest = call.feed(json.dumps({"name": "f", "arguments": {"value": value}}) + "rest")
    assert (call.name, call.is_done, rest) == ("f", True, "rest")
    assert json.loads(call.take_arguments()) == {"value": value}


@pytest.mark.parametrize(
    ("tool_format", "text"),
    [
        ("hermes", f"Yes. <tool_call>{WEATHER}</tool_call>\n<tool_call>{WEATHER}</tool_call>"),
        ("llama", '{"name": "weather", "parameters": {}}; {"name": "weather", "parameters": {}}'),
    ],
)
def test_calls_after_the_first_are_told_only_where_they_are_allowed(tool_format: ToolFormat, text: str) -> None:
    for size in (1, 5, 1000):
        for is_parallel, num_calls in ((True, 2), (False, 1)):
            parser = tool_output(tool_format, lambda: "id", is_parallel=is_parallel)
            found = joined([*(parser.feed(text[i : i + size]) for i in range(0, len(text), size)), parser.end()])
            assert [call.name for call in found.tool_calls] == ["weather"] * num_calls
            assert "tool_call" not in found.content


def test_a_thought_comes_before_the_calls() -> None:
    parser = ChainedOutput(ReasoningOutput(is_inside=False), tool_output("hermes", lambda: "id"))
    text = f"<think>Use <tool_call>?</think>\n\nYes.\n<tool_call>{WEATHER}</tool_call>"
    found = joined([*map(parser.feed, text), parser.end()])
    assert (found.reasoning, found.content) == ("Use <tool_call>?", "Yes.")
    assert [call.name for call in found.tool_calls] == ["weather"]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("...<tool_call>\n{{ call }}...", "hermes"),
        ('Respond in the format {"name": function name, "parameters": dictionary}', "llama"),
        (None, "hermes"),
    ],
)
def test_the_format_is_the_templates(template: str | None, expected: str) -> None:
    class Tokenizer:
        chat_template = template

    assert format_of_template(Tokenizer()) == expected
