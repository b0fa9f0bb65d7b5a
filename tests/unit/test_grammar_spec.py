import json
import subprocess
import sys

import pytest

from specedge.errors import InvalidRequest
from specedge.grammar.schema import enforceable_schema
from specedge.grammar.spec import MAX_CHOICES, MAX_NESTING, MAX_SOURCE_BYTES, GrammarSpec


def nested(depth: int) -> str:
    return '{"items":' * depth + "{}" + "}" * depth


@pytest.mark.parametrize(
    ("kind", "source", "said"),
    [
        ("nonsense", "x", "must be one of"),
        ("regex", "", "is empty"),
        ("regex", "a" * (MAX_SOURCE_BYTES + 1), f"at most {MAX_SOURCE_BYTES}"),
        ("regex", "\ud800", "surrogate"),
        ("json_schema", "{", "not JSON"),
        ("json_schema", "3", "must be a JSON object"),
        ("json_schema", '{"minimum": NaN}', "not a JSON number"),
        ("json_schema", nested(MAX_NESTING), f"more than {MAX_NESTING} levels"),
        ("json_schema", nested(20_000), f"more than {MAX_NESTING} levels"),
        ("choice", "[]", "at least one string"),
        ("choice", "[1]", "at least one string"),
        ("choice", '{"a": 1}', "at least one string"),
        ("choice", json.dumps(["x"] * (MAX_CHOICES + 1)), f"at most {MAX_CHOICES}"),
        ("structural_tag", "[]", "must be a JSON object"),
    ],
)
def test_what_is_wrong_at_first_sight_is_refused_with_the_limit(kind, source, said) -> None:
    with pytest.raises(InvalidRequest, match=said) as refused:
        GrammarSpec(kind, source).validate()
    assert refused.value.param is not None


def test_a_schema_at_the_limit_of_nesting_is_taken() -> None:
    GrammarSpec("json_schema", nested(MAX_NESTING - 1)).validate()


def test_plain_data_needs_neither_torch_nor_xgrammar() -> None:
    code = (
        "import sys, specedge.grammar.spec, specedge.grammar.schema;"
        "sys.exit(' '.join({'torch', 'xgrammar', 'llguidance', 'transformers'} & sys.modules.keys()) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"not": {"type": "string"}}, "uses not"),
        ({"type": "array", "uniqueItems": True}, "uses uniqueItems"),
        ({"if": True, "then": False}, "uses if"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "allOf with several"),
        ({"anyOf": [{"type": "string"}], "maxLength": 3}, "beside"),
        ({"$ref": "#/$defs/a", "type": "string"}, "beside"),
        ({"$ref": "https://example.org/a.json"}, "must begin with"),
        ({"enum": []}, "admits no value"),
        ({"enum": [1], "type": "string"}, "admits no value"),
        ({"const": 1, "enum": [True]}, "admits no value"),
        ({"enum": ["abc"], "maxLength": 1}, "beside enum"),
        ({"minimum": 1, "minLength": 1}, "of several types"),
        ({"type": "string", "pattern": 'a"b'}, "pattern with"),
        ({"type": "string", "pattern": r"a\nb"}, "pattern with"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "requires 'a' and forbids it"),
        ({"type": "object", "properties": {"a": {"not": {}}}}, "#/properties/a uses not"),
        ({"$defs": {"a": {"not": {}}}, "$ref": "#/$defs/a"}, r"#/\$defs/a uses not"),
        ({"type": ["string", 3]}, "type must be"),
        ({"items": 3}, "must be an object or a boolean"),
    ],
)
def test_what_a_grammar_would_pass_over_is_refused_by_name(schema, said) -> None:
    with pytest.raises(InvalidRequest, match=said) as refused:
        enforceable_schema(schema, "response_format")
    assert refused.value.param == "response_format"


@pytest.mark.parametrize(
    ("schema", "rewritten"),
    [
        ({"minimum": 3}, {"minimum": 3, "type": "number"}),
        ({"enum": [1, "a", None], "type": ["string", "null"]}, {"enum": ["a", None]}),
        ({"const": 1.0, "type": "integer"}, {"enum": [1.0]}),
        ({"type": "object"}, {"type": "object", "additionalProperties": True}),
        ({"type": "array", "minItems": 2}, {"type": "array", "minItems": 2, "items": True}),
        ({"required": ["a"]}, {"required": ["a"], "type": "object", "properties": {"a": True}}),
        ({"pattern": r'^[^"\\]+$', "title": "t"}, {"pattern": r'^[^"\\]+$', "title": "t", "type": "string"}),
        ({"$ref": "#/$defs/a", "description": "d"}, {"$ref": "#/$defs/a", "description": "d"}),
        (True, True),
    ],
)
def test_what_can_be_said_in_other_words_is(schema, rewritten) -> None:
    assert enforceable_schema(schema, "response_format") == rewritten
