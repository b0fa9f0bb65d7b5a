"""Which grammars are better followed lazily, and how they are written for llguidance.

Those with JSON in them, and regular expressions that count far: see `lazy_matcher`. A dot in the latter is no newline.
"""

import json
import re
from typing import Any, Final

from llguidance import regex_to_lark

from specedge.grammar.schema import MAX_WHITESPACE

MAX_REPEATS: Final = 4
"""Regular expressions that repeat no part more often are left to masks made ahead, which are faster to follow."""

# Without this, a text that must come would only be allowed in the tokens that a tokenizer makes of it.
_HEADER: Final = '%llguidance {"no_forcing": true}\n'
_JSON_OPTIONS: Final = {"whitespace_pattern": rf"[ \n\t\r]{{1,{MAX_WHITESPACE}}}"}
_REPEAT: Final = re.compile(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}")
_VALUES: Final = ("enum", "const", "default", "examples")
_ASCII_CLASSES: Final = "dws"


def lazy_grammar(kind: str, source: str) -> str | None:
    """The grammar for `LazyVocabulary.begin`; None for one that gains nothing by it, or that cannot be put this way.

    Args:
        kind: "json_schema", "regex" and "structural_tag" can be put this way.
        source: as `compiler_source` gives it.
    """
    try:
        if kind == "regex" and _counts_far(source):
            return f"{_HEADER}start: {_regex(source)}\n"
        if kind == "json_schema":
            return f"{_HEADER}start: {_json(json.loads(source))}\n"
        if kind != "structural_tag":
            return None
        rules = _Rules()
        return f"{_HEADER}start: {rules.rule(json.loads(source)['format'])}\n" + "".join(rules.texts)
    except (_Unsupported, KeyError):
        return None


class _Unsupported(Exception):
    pass


class _Rules:
    """A structural tag as one rule, and the rules of free text that it needs."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def rule(self, tag: Any) -> str:
        match tag:
            case {"type": "sequence", "elements": list(elements)}:
                return f"({' '.join(map(self.rule, elements))})"
            case {"type": "or", "elements": list(elements)}:
                return f"({' | '.join(map(self.rule, elements))})"
            case {"type": "optional", "content": content}:
                return f"({self.rule(content)})?"
            case {"type": "const_string", "value": str(value)}:
                return _text(value)
            case {"type": "regex", "pattern": str(pattern), **others} if not others:
                return _regex(pattern)
            case {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": _, **others} if not others:
                return _json(schema)
            case {"type": "tag", "begin": str(begin), "content": content, "end": str(end), **others} if not others:
                return self._tag(begin, content, end)
            case {"type": "tags_with_separator", "tags": list(tags), "separator": str(separator)}:
                return self._separated(tags, separator, tag.get("at_least_one"), tag.get("stop_after_first"))
            case _:
                raise _Unsupported

    def _tag(self, begin: str, content: Any, end: str) -> str:
        if content != {"type": "any_text"}:
            return f"({_text(begin)} {self.rule(content)} {_text(end)})"
        name = f"text_{len(self.texts)}"
        self.texts.append(f"{name}[suffix={_text(end)}]: /(?s:.*)/\n")
        return f"({_text(begin)} {name})"

    def _separated(self, tags: list[Any], separator: str, at_least_one: object, stop_after_first: object) -> str:
        either = f"({' | '.join(map(self.rule, tags))})"
        several = either if stop_after_first else f"({either} ({_text(separator)} {either})*)"
        return several if at_least_one else f"{several}?"


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _regex(pattern: str) -> str:
    return f"/{regex_to_lark(pattern, _ASCII_CLASSES)}/"


def _json(schema: Any) -> str:
    closed = _closed(schema)
    if not isinstance(closed, dict):
        raise _Unsupported
    return f"%json {json.dumps({**closed, 'x-guidance': _JSON_OPTIONS})}"


def _closed(schema: Any) -> Any:
    """The schema, saying what xgrammar takes for granted: nothing beside what is named, and patterns of whole strings.

    Where a name could be a property's as well as a keyword, the value tells: a property's is never a string or a list.
    """
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: value if key in _VALUES else _closed(value) for key, value in schema.items()}
    types = schema.get("type")
    if types == "object" or (isinstance(types, list) and "object" in types):
        closed.setdefault("additionalProperties", False)
    if isinstance(schema.get("prefixItems"), list):
        closed.setdefault("items", False)
    if isinstance(schema.get("pattern"), str):
        closed["pattern"] = f"^(?:{schema['pattern'].removeprefix('^').removesuffix('$')})$"
    return closed


def _counts_far(pattern: str) -> bool:
    """Whether a part of a regular expression may be repeated a limited number of times above MAX_REPEATS."""
    return any(int(number or 0) > MAX_REPEATS for repeat in _REPEAT.finditer(pattern) for number in repeat.groups())
