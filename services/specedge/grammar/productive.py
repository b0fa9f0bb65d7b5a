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
    """The rules that derive a finite text; each expression is looked at once for each use of it.

    An expression refers to other expressions, and to rules by number.
    """
    users: list[list[int]] = [[] for _ in expressions]  # for each expression those that it is a part of
    referring: list[list[int]] = [[] for _ in bodies]  # for each rule the expressions that need it
    num_missing = [0] * len(expressions)
    for index, (kind, operands) in enumerate(expressions):
        if kind in (_SEQUENCE, _CHOICES):
            num_missing[index] = len(operands) if kind == _SEQUENCE else 1
            for operand in operands:
                users[operand].append(index)
        elif kind == _RULE_REF or (kind == _REPEAT and operands[1] != 0):
            num_missing[index] = 1
            referring[operands[0]].append(index)
        else:
            num_missing[index] = int(not _is_productive(kind, operands))
    rules_of: dict[int, list[int]] = {}
    for rule, body in enumerate(bodies):
        rules_of.setdefault(body, []).append(rule)
    found: set[int] = set()
    waiting = [index for index, missing in enumerate(num_missing) if missing == 0]
    while waiting:
        index = waiting.pop()
        rules = rules_of.get(index, ())
        found.update(rules)
        for user in (*users[index], *(user for rule in rules for user in referring[rule])):
            num_missing[user] -= 1
            if num_missing[user] == 0:
                waiting.append(user)
    return found


def _is_productive(kind: int, operands: list[int]) -> bool:
    """Whether an expression that needs no other derives a text."""
    return not (kind == _CHARACTER_CLASS and operands[0] and operands[1:] == _EVERY_CHARACTER)
