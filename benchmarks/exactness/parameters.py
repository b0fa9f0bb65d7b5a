"""The parameter sets that requests take by turns; each makes a token depend on more than its own row."""

from collections.abc import Callable, Sequence
from typing import Final, Literal

from specedge.grammar.spec import GrammarSpec
from specedge.sampling import SamplingParams

Requests = Literal["mixed", "penalties", "grammar"]
"""Which parameter sets the requests of a cell have: a bit of everything, penalties in all of them, grammars in all."""

Stops = tuple[int, int, int]
"""Frequent tokens: a comma, a full stop, and `the`."""

_SCHEMA = '{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}'
_STRICT_SCHEMA = (
    '{"type": "object", "properties": {"hero": {"enum": ["fox", "hen"]}, "age": {"type": "integer", "maximum": 20}, '
    '"name": {"type": "string", "maxLength": 8}}, "required": ["hero", "age", "name"], "additionalProperties": false}'
)
_ARRAY_SCHEMA = '{"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 2, "maxItems": 5}'
_CHOICES = '["The fox ran away.", "The hen ran home.", "Nobody knows where the fox went."]'
_TWO_SENTENCES = r"[A-Z][a-z ,]+\. [A-Z][a-z ]{5,30}!"
_LIST = 'root ::= ("- " [^\\n]+ "\\n")+'
_NUMBERED = r"(1\. [A-Z][a-z]{2,9}\n2\. [A-Z][a-z]{2,9}\n)(3\. [A-Z][a-z]{2,9}\n)?"


def _mixed(stops: Stops, eos_id: int) -> list[SamplingParams]:
    ends = ((eos_id, 7.0),)  # the end is helped to come up at all
    return [
        SamplingParams(),
        SamplingParams(top_p=0.9),
        SamplingParams(presence_penalty=0.6, frequency_penalty=0.4),
        SamplingParams(top_k=20),
        SamplingParams(logit_bias=ends),
        SamplingParams(repetition_penalty=1.3),
        SamplingParams(min_p=0.05),
        SamplingParams(logit_bias=ends, min_tokens=6),
        SamplingParams(stop_token_ids=stops[:2]),
        SamplingParams(logit_bias=ends, ignore_eos=True, top_p=0.95),
        SamplingParams(top_k=50, top_p=0.95, min_p=0.02, repetition_penalty=1.1),
        SamplingParams(stop_token_ids=stops, min_tokens=9, frequency_penalty=1.0, top_p=0.8),
        SamplingParams(presence_penalty=-0.5, logit_bias=((stops[0], -4.0), (stops[1], 2.0), *ends), min_tokens=3),
        SamplingParams(bad_words=(stops[:1], stops[1:]), allowed_token_ids=tuple(range(3000)), num_logprobs=2),
        SamplingParams(grammar=GrammarSpec("json_schema", _SCHEMA)),
        SamplingParams(grammar=GrammarSpec("regex", _TWO_SENTENCES), top_p=0.9, min_tokens=4),
        SamplingParams(grammar=GrammarSpec("ebnf", _LIST), repetition_penalty=1.2),
    ]


def _penalties(stops: Stops, eos_id: int) -> list[SamplingParams]:
    """Each alone, weak and strong, negative too; together; with whatever else changes logits before them or after."""
    ends = ((eos_id, 7.0),)
    return [
        SamplingParams(presence_penalty=1.8),
        SamplingParams(frequency_penalty=1.2),
        SamplingParams(repetition_penalty=1.4),
        SamplingParams(presence_penalty=-1.5),
        SamplingParams(frequency_penalty=-0.6),
        SamplingParams(repetition_penalty=0.8),
        SamplingParams(presence_penalty=0.9, frequency_penalty=0.7, repetition_penalty=1.2),
        SamplingParams(frequency_penalty=2.0, logit_bias=((stops[0], 6.0), (stops[2], 5.0))),
        SamplingParams(presence_penalty=1.1, top_p=0.8, top_k=40, min_p=0.02),
        SamplingParams(repetition_penalty=1.3, logit_bias=ends, min_tokens=8),
        SamplingParams(frequency_penalty=1.0, stop_token_ids=stops[:2], min_tokens=5),
        SamplingParams(presence_penalty=1.4, bad_words=(stops[:1], stops[1:]), num_logprobs=3),
        SamplingParams(frequency_penalty=0.9, repetition_penalty=1.15, grammar=GrammarSpec("regex", _TWO_SENTENCES)),
    ]


def _grammar(stops: Stops, eos_id: int) -> list[SamplingParams]:
    """Every kind; with the parameters that meet a grammar at the same token or hold back its end."""
    return [
        SamplingParams(grammar=GrammarSpec("json_object")),
        SamplingParams(grammar=GrammarSpec("json_schema", _STRICT_SCHEMA)),
        SamplingParams(grammar=GrammarSpec("choice", _CHOICES)),
        SamplingParams(grammar=GrammarSpec("regex", _TWO_SENTENCES)),
        SamplingParams(grammar=GrammarSpec("ebnf", _LIST)),
        SamplingParams(grammar=GrammarSpec("json_schema", _ARRAY_SCHEMA)),
        SamplingParams(grammar=GrammarSpec("json_schema", _SCHEMA), top_p=0.8, top_k=30),
        SamplingParams(grammar=GrammarSpec("regex", _NUMBERED), min_p=0.02),
        SamplingParams(grammar=GrammarSpec("json_schema", _STRICT_SCHEMA), repetition_penalty=1.2, num_logprobs=2),
        SamplingParams(grammar=GrammarSpec("json_schema", _ARRAY_SCHEMA), frequency_penalty=0.8, min_tokens=12),
        SamplingParams(grammar=GrammarSpec("ebnf", _LIST), logit_bias=((eos_id, 7.0),), min_tokens=6),
        SamplingParams(grammar=GrammarSpec("regex", _TWO_SENTENCES), stop_token_ids=stops[:1], ignore_eos=True),
        SamplingParams(grammar=GrammarSpec("choice", _CHOICES), presence_penalty=0.5, bad_words=(stops[:1],)),
    ]


PARAMETERS: Final[dict[Requests, Callable[[Stops, int], Sequence[SamplingParams]]]] = {
    "mixed": _mixed,
    "penalties": _penalties,
    "grammar": _grammar,
}
"""By cell: from frequent tokens and the target's end-of-sequence token."""
