"""Whether a grammar admits any finite text at all."""

import json
from typing import Final

_RULE_REF, _SEQUENCE, _CHOICES, _REPEAT, _CHARACTER_CLASS = 4, 5, 6, 8, 1
_EVERY_CHARACTER: Final = [0, 0x10FFFF]


def admits_something(grammar: str) -> bool:
    """Whether the root rule of a serialised grammar derives a finite text.

    A rule that always needs itself again admits nothing, although each of its tokens is allowed. What is not known to
    need a rule counts as admitting something.

    Args:
        grammar: what ``xgrammar.Grammar.serialize_json`` gives.
    """
    fields = json.loads(grammar)
    data, starts = fields["grammar_expr_data"], fields["grammar_expr_indptr"]
    bodies = [rule[1] for rule in fields["rules"]]
    ends = [*starts[1:], len(data)]
    expressions = [(data[start], data[start + 2 : end]) for start, end in zip(starts, ends, strict=True)]
    return fields["root_rule_id"] in _productive_rules(expressions, bodies)


def _productive_rules(expressions: list[tuple[int, list[int]]], bodies: list[int]) -> set[int]:
    """Rules are added until no more are found; an expression refers to earlier ones, and to rules by number."""
    rules: set[int] = set()
    while True:
        holds: list[bool] = []
        for kind, operands in expressions:
            holds.append(_is_productive(kind, operands, holds, rules))
        found = {rule for rule, body in enumerate(bodies) if holds[body]}
        if found == rules:
            return rules
        rules = found


def _is_productive(kind: int, operands: list[int], holds: list[bool], rules: set[int]) -> bool:
    if kind == _RULE_REF:
        return operands[0] in rules
    if kind == _SEQUENCE:
        return all(holds[operand] for operand in operands)
    if kind == _CHOICES:
        return any(holds[operand] for operand in operands)
    if kind == _REPEAT:
        return operands[1] == 0 or operands[0] in rules
    if kind == _CHARACTER_CLASS:
        return not (operands[0] and operands[1:] == _EVERY_CHARACTER)
    return True
