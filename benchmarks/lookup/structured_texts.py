"""Structured answers for the replay, written for it: data taken from a text, a record changed, lines in one form."""

import json
from dataclasses import dataclass

from specedge.grammar.spec import GrammarSpec


@dataclass(frozen=True, slots=True)
class StructuredCase:
    """One request, the grammar of its answer, and the answer.

    Attributes:
        kind: in the table.
        prompt: what the model reads.
        answer: what it says.
        grammar: what the answer must follow.
    """

    kind: str
    prompt: str
    answer: str
    grammar: GrammarSpec


_ORDERS = """\
Hello, this is Carla Jansen from Utrecht. I should like 12 boxes of green candles and 3 boxes of lamp oil, to \
be sent to Utrecht by Friday. Hello, Peter Novak here, from Brno. Please send 40 boxes of paper bags and 6 \
boxes of green candles to Brno, no hurry. Good morning, it is Amina Diallo in Lyon. We need 25 boxes of lamp \
oil and 25 boxes of paper bags in Lyon by Monday. Peter Novak again, from Brno: make it 10 boxes of green \
candles, please."""

_ORDER_ITEMS = [
    ("Carla Jansen", "Utrecht", "green candles", 12, "Friday"),
    ("Carla Jansen", "Utrecht", "lamp oil", 3, "Friday"),
    ("Peter Novak", "Brno", "paper bags", 40, "none"),
    ("Peter Novak", "Brno", "green candles", 10, "none"),
    ("Amina Diallo", "Lyon", "lamp oil", 25, "Monday"),
    ("Amina Diallo", "Lyon", "paper bags", 25, "Monday"),
]
_ORDER_KEYS = ("customer", "city", "article", "boxes", "wanted_by")

_SERVICE = {
    "service": {"name": "harbour-gate", "replicas": 3, "region": "north", "owner": "team-quay"},
    "limits": {"requests_per_second": 200, "burst": 400, "timeout_seconds": 30},
    "routes": [
        {"path": "/ships", "method": "GET", "cache_seconds": 60, "public": True},
        {"path": "/ships", "method": "POST", "cache_seconds": 0, "public": False},
        {"path": "/berths", "method": "GET", "cache_seconds": 300, "public": True},
        {"path": "/berths", "method": "POST", "cache_seconds": 0, "public": False},
    ],
}

_EVENTS = """\
On 3 March at ten past six the pump of cellar B stopped, which was an error. On 3 March at twenty past six the \
pump of cellar B was started again. On 4 March at noon the filter of cellar B was nearly full, a warning. On 5 \
March at nine the filter of cellar B was changed. On 5 March at half past nine the pump of cellar C stopped, \
which was an error. On 5 March at ten the pump of cellar C was started again."""

_LINES = (
    "2026-03-03 06:10 ERROR pump of cellar B: stopped",
    "2026-03-03 06:20 INFO pump of cellar B: started again",
    "2026-03-04 12:00 WARNING filter of cellar B: nearly full",
    "2026-03-05 09:00 INFO filter of cellar B: changed",
    "2026-03-05 09:30 ERROR pump of cellar C: stopped",
    "2026-03-05 10:00 INFO pump of cellar C: started again",
)


def _schema_of(value: object) -> dict[str, object]:
    """A schema that admits values of this shape."""
    match value:
        case bool():
            return {"type": "boolean"}
        case int():
            return {"type": "integer"}
        case str():
            return {"type": "string"}
        case list():
            return {"type": "array", "items": _schema_of(value[0])}
        case dict():
            properties = {key: _schema_of(item) for key, item in value.items()}
            return {
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            }
    raise TypeError(f"{value!r} is not JSON")


def _json_case(kind: str, prompt: str, value: object) -> StructuredCase:
    return StructuredCase(kind, prompt, json.dumps(value), GrammarSpec("json_schema", json.dumps(_schema_of(value))))


def _changed() -> dict[str, object]:
    changed = json.loads(json.dumps(_SERVICE))
    changed["service"]["replicas"] = 5
    changed["routes"][2]["cache_seconds"] = 120
    changed["routes"][3]["public"] = True
    return dict(changed)


CASES = (
    _json_case(
        "JSON, taken from a text",
        f"{_ORDERS}\n\nWrite all orders as JSON.\n",
        {"orders": [dict(zip(_ORDER_KEYS, item, strict=True)) for item in _ORDER_ITEMS]},
    ),
    _json_case(
        "JSON, a record changed",
        f"{json.dumps(_SERVICE, indent=2)}\n\nFive replicas, cache berths for two minutes, and berths may be posted by "
        "everybody. Write the new configuration on one line.\n",
        _changed(),
    ),
    StructuredCase(
        "regex, lines of a log",
        f"{_EVENTS}\n\nWrite a log of the year 2026 with one line for each event, as in: {_LINES[0]}\n",
        "\n".join(_LINES),
        GrammarSpec(
            "regex",
            r"([0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2} (INFO|WARNING|ERROR) (pump|filter) of cellar [A-C]: [a-z ]+"
            r"\n?)+",
        ),
    ),
)
