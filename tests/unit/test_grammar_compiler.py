"""Good grammars compile; bad ones are refused, and the process that serves does not notice."""

import json
import socket
import subprocess
import sys
import tempfile
import time

import pytest
from grammar_support import EOS, allowed, compiled, compiler, ids, spec

from specedge.errors import InvalidRequest
from specedge.grammar import compile_process
from specedge.grammar.spec import GrammarSpec

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
}


def tools(num_tools: int) -> dict:
    tags = [
        {
            "type": "tag",
            "begin": f'<tool_call>\n{{"name": "tool_{index}", "arguments": ',
            "content": {"type": "json_schema", "json_schema": PERSON},
            "end": "}\n</tool_call>",
        }
        for index in range(num_tools)
    ]
    return {"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": ["<tool_call>"], "tags": tags}}


@pytest.mark.parametrize(
    ("kind", "source", "text"),
    [
        ("json_object", "", '{"a": [1, "x", {"b": null}]}'),
        ("json_schema", PERSON, '{"name": "Bo", "age": 3}'),
        ("json_schema", {"required": ["a"]}, '{"a": 1}'),
        ("json_schema", {"type": "object", "minProperties": 1}, '{"x": 1}'),
        ("json_schema", {"type": "array", "minItems": 2}, "[1, 2]"),
        ("regex", "[a-c]+[0-9]{2}", "abc12"),
        ("choice", ["yes", 'say "no"\\', "line\nbreak", "\x00", "é😀"], 'say "no"\\'),
        ("choice", ["yes", "line\nbreak", "é😀"], "é😀"),
        ("choice", ["", "yes"], ""),
        ("ebnf", 'root ::= item ("," item)*\nitem ::= [0-9]+', "1,23"),
        (
            "structural_tag",
            tools(2),
            'Hm. <tool_call>\n{"name": "tool_1", "arguments": {"name": "x"}}\n</tool_call> ok',
        ),
    ],
)
def test_a_text_of_the_grammar_is_taken_to_its_end(kind, source, text) -> None:
    state = compiled(kind, source).start()
    tokens = ids(text)
    assert state.accept(tokens) == len(tokens)
    assert state.is_complete
    assert not state.is_stuck
    assert state.accept([EOS]) == 1
    assert state.is_ended
    assert state.accept([EOS]) == 0


@pytest.mark.parametrize(
    ("kind", "source", "text"),
    [
        ("json_object", "", "[1]"),
        ("json_schema", PERSON, '{"age": 3}'),
        ("json_schema", {"required": ["a"]}, "{}"),
        ("json_schema", {"type": "object", "minProperties": 1}, "{}"),
        ("json_schema", {"minimum": 3}, '"x"'),
        ("json_schema", {"enum": [1, "a"], "type": "string"}, "1"),
        ("regex", "[a-c]+", "abd"),
        ("choice", ["yes", "no"], "yesno"),
        ("structural_tag", tools(2), '<tool_call>\n{"name": "tool_7"'),
    ],
)
def test_another_text_is_not(kind, source, text) -> None:
    state = compiled(kind, source).start()
    tokens = [*ids(text), EOS]
    assert state.accept(tokens) < len(tokens)


@pytest.mark.parametrize(
    ("kind", "source", "said"),
    [
        ("json_schema", False, "cannot accept any value"),
        ("json_schema", {"type": "integer", "minimum": 5, "maximum": 3}, "minimum greater than maximum"),
        ("json_schema", {"type": "nonsense"}, "nonsense"),
        ("json_schema", {"$ref": "#/nope"}, "nope"),
        ("json_schema", {"$ref": "#"}, "admits nothing"),
        ("json_schema", {"properties": {"x": {"$ref": "#"}}, "required": ["x"]}, "admits nothing"),
        ("json_schema", {"oneOf": [{"type": "integer"}, {"type": "number"}]}, "cannot be enforced: oneOf"),
        ("json_schema", {"type": "string", "pattern": "^a+$", "maxLength": 3}, "cannot be enforced: pattern"),
        ("regex", "([", "Unclosed"),
        ("regex", "(?=a)b", "Lookahead"),
        ("regex", r"[^\s\S]", "admits nothing"),
        ("regex", "(" * 20_000 + "a" + ")" * 20_000, "Nest"),
        ("regex", "|".join(f"{index:x}.*" for index in range(3000)), "too complex"),
        ("regex", "(([a-z ]*)*)*X", "too ambiguous"),
        ("ebnf", "root ::= root", "admits nothing"),
        ("ebnf", 'root ::= "a" root', "admits nothing"),
        ("ebnf", r'root ::= "a" [^\u0000-\U0010ffff]', "admits nothing"),
        ("ebnf", "root ::= unknown", "not defined"),
        ("ebnf", 'start: "a"', "lexer error"),
        ("ebnf", "root ::= root root | [a-z ]", "too ambiguous"),
        ("structural_tag", tools(10_000), "at most 262144"),
        ("structural_tag", {"type": "structural_tag", "format": {"type": "nope"}}, "not recognized"),
        (
            "structural_tag",
            {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": {"not": {}}}},
            "not",
        ),
    ],
)
def test_a_bad_grammar_is_refused_and_the_next_good_one_compiles(kind, source, said) -> None:
    with pytest.raises(InvalidRequest, match=said) as refused:
        compiler().compile(spec(kind, source), param="the_field")
    assert refused.value.param == "the_field"
    assert "/project" not in str(refused.value)
    fresh = {**PERSON, "title": f"after {kind} {time.monotonic_ns()}"}
    assert compiled("json_schema", fresh).start().allows([], ids("{")).all()


def test_a_compiled_grammar_and_a_refusal_are_kept() -> None:
    assert compiled("choice", ["a", "b"]) is compiled("choice", ["a", "b"])
    messages = set()
    for _ in range(2):
        with pytest.raises(InvalidRequest) as refused:
            compiled("regex", "([")
        messages.add(str(refused.value))
    assert len(messages) == 1


def test_a_dead_process_is_replaced() -> None:
    process = compiler()._client._process
    assert process is not None
    process.kill()
    process.wait()
    assert allowed(compiled("regex", "after[0-9]").start().masks([], [])[0]) >= {ids("a")[0]}


@pytest.mark.parametrize("vocabulary", ["", '{"vocab'], ids=["before", "within"])
def test_the_process_ends_in_silence_when_the_one_that_serves_is_killed_as_it_starts(vocabulary: str) -> None:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "specedge.grammar.compile_process", str(theirs.fileno())]
    with subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE) as process:
        theirs.close()
        connection, other = socket.socketpair()
        with connection, other:
            socket.send_fds(ours, [b"c"], [other.fileno()])
            connection.sendall(vocabulary.encode())
        ours.close()
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, b"")


@pytest.mark.parametrize("again_s", [60.0, -1.0])
def test_a_grammar_is_the_same_compiled_again_or_read_back(again_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_process, "MAX_AGAIN_S", again_s)
    with tempfile.TemporaryFile() as warnings:
        made = compile_process._compile("regex", "a[0-9]b", compiler()._info, compiler()._lazy, warnings)
    is_lazy, serialised = made
    assert not is_lazy
    assert bool(serialised) == (again_s < 0)
    monkeypatch.setattr(compiler()._client, "compile", lambda *_: made)
    compiled = compiler()._compiled(GrammarSpec("regex", "a[0-9]b"))
    assert not isinstance(compiled, str)
    state = compiled.start()
    assert state.accept(ids("a1b")) == len(ids("a1b")) and state.is_complete


def test_a_schema_of_many_properties_compiles_within_the_limits() -> None:
    names = [f"property_{index}" for index in range(300)]
    schema = {"type": "object", "properties": {name: {"type": "integer"} for name in names}, "required": names}
    state = compiler().compile(GrammarSpec("json_schema", json.dumps(schema))).start()
    tokens = ids(json.dumps(dict.fromkeys(names, 7)))
    assert state.accept(tokens) == len(tokens) and state.is_complete
