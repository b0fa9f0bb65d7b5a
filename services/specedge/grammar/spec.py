"""Which grammar an answer must follow, as plain data."""

import json
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NoReturn, get_args

from specedge.errors import InvalidRequest

GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "ebnf", "structural_tag"]
GRAMMAR_KINDS: Final[tuple[GrammarKind, ...]] = get_args(GrammarKind)

MAX_SOURCE_BYTES: Final = 256 * 1024
MAX_NESTING: Final = 64
MAX_CHOICES: Final = 1024

_JSON_KINDS: Final = ("json_schema", "choice", "structural_tag")
_PARAMS: Final[dict[str, str]] = {"json_object": "response_format", "json_schema": "response_format"}


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """One grammar.

    Attributes:
        kind: the language of the source.
        source: JSON text for "json_schema", "choice" (a list of strings) and "structural_tag"; a regular expression;
            EBNF as llama.cpp writes it (GBNF), whose root rule is named root; nothing for "json_object".
        asked_in: the request's field that it came in; what is asked is the same without it.
    """

    kind: GrammarKind
    source: str = ""
    asked_in: str = field(default="", compare=False)

    @property
    def param(self) -> str:
        """The request's field that it came in, or that such a grammar usually comes in."""
        return self.asked_in or _PARAMS.get(self.kind, "structured_outputs")

    def validate(self) -> None:
        """Refuse what is wrong at first sight: an unknown kind, a source too long, not JSON, or nested too deeply.

        Raises:
            InvalidRequest: names the limit.
        """
        if self.kind not in GRAMMAR_KINDS:
            self._refuse(f"grammar kind is {self.kind!r}; it must be one of {', '.join(GRAMMAR_KINDS)}")
        try:
            num_bytes = len(self.source.encode())
        except UnicodeEncodeError:
            self._refuse(f"{self.kind} holds half of a surrogate pair; it must be valid Unicode")
        if num_bytes > MAX_SOURCE_BYTES:
            self._refuse(f"{self.kind} has {num_bytes} bytes; it may have at most {MAX_SOURCE_BYTES}")
        if not self.source and self.kind != "json_object":
            self._refuse(f"{self.kind} is empty")
        if self.kind in _JSON_KINDS:
            self.parsed()

    def parsed(self) -> Any:
        """The source of a kind written as JSON.

        Raises:
            InvalidRequest: it is not JSON, nested too deeply, or not of the kind's shape.
        """
        try:
            value = json.loads(self.source, parse_constant=_refuse_constant)
        except RecursionError:
            self._refuse(f"{self.kind} is nested more than {MAX_NESTING} levels deep")
        except ValueError as error:
            self._refuse(f"{self.kind} is not JSON: {error}")
        if _nesting(value) > MAX_NESTING:
            self._refuse(f"{self.kind} is nested more than {MAX_NESTING} levels deep")
        if self.kind == "choice":
            self._check_choices(value)
        elif self.kind == "structural_tag" and not isinstance(value, dict):
            self._refuse("structural_tag must be a JSON object")
        elif not isinstance(value, dict | bool | list):
            self._refuse(f"{self.kind} must be a JSON object")
        return value

    def _check_choices(self, value: object) -> None:
        if not isinstance(value, list) or not value or not all(isinstance(choice, str) for choice in value):
            self._refuse("choice must be a list of at least one string")
        if len(value) > MAX_CHOICES:
            self._refuse(f"choice has {len(value)} strings; it may have at most {MAX_CHOICES}")

    def _refuse(self, message: str) -> NoReturn:
        raise InvalidRequest(message, param=self.param)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _nesting(value: object) -> int:
    """How deeply containers lie in each other, counted no further than one level past the limit."""
    level, depth = [value], 0
    while level and depth <= MAX_NESTING:
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        depth += any(isinstance(item, dict | list) for item in level)
        level = inner
    return depth
