"""Which rules derive a finite text: the answer of one pass equals that of repeating until nothing more is found."""

from hypothesis import given
from hypothesis import strategies as st

from specedge.grammar.productive import _productive_rules

RULE_REF, SEQUENCE, CHOICES, REPEAT, CHARACTER_CLASS, TEXT = 4, 5, 6, 8, 1, 0
NOTHING = [1, 0, 0x10FFFF]  # a class that excludes every character
NUM_RULES = 4

Expressions = list[tuple[int, list[int]]]


def repeated(expressions: Expressions, bodies: list[int]) -> set[int]:
    rules: set[int] = set()
    while True:
        holds: list[bool] = []
        for kind, operands in expressions:
            if kind == RULE_REF:
                holds.append(operands[0] in rules)
            elif kind == SEQUENCE:
                holds.append(all(holds[operand] for operand in operands))
            elif kind == CHOICES:
                holds.append(any(holds[operand] for operand in operands))
            elif kind == REPEAT:
                holds.append(operands[1] == 0 or operands[0] in rules)
            else:
                holds.append(operands != NOTHING)
        found = {rule for rule, body in enumerate(bodies) if holds[body]}
        if found == rules:
            return rules
        rules = found


@st.composite
def grammars(draw: st.DrawFn) -> tuple[Expressions, list[int]]:
    rule = st.integers(0, NUM_RULES - 1)
    expressions: Expressions = []
    for index in range(draw(st.integers(1, 10))):
        earlier = st.lists(st.integers(0, index - 1), max_size=3) if index else st.just([])
        choices = [
            st.tuples(st.just(RULE_REF), rule.map(lambda number: [number])),
            st.tuples(st.sampled_from([SEQUENCE, CHOICES]), earlier),
            st.tuples(st.just(REPEAT), st.tuples(rule, st.integers(0, 1)).map(lambda pair: [*pair, 3])),
            st.tuples(st.just(CHARACTER_CLASS), st.sampled_from([NOTHING, [0, 97, 122]])),
            st.just((TEXT, [97])),
        ]
        expressions.append(draw(st.one_of(*choices)))
    bodies = draw(
        st.lists(st.integers(0, len(expressions) - 1), min_size=NUM_RULES, max_size=NUM_RULES),
    )
    return expressions, bodies


@given(grammars())
def test_one_pass_finds_what_repeating_finds(grammar: tuple[Expressions, list[int]]) -> None:
    assert _productive_rules(*grammar) == repeated(*grammar)


def test_a_rule_that_always_needs_itself_admits_nothing() -> None:
    assert _productive_rules([(TEXT, [97]), (RULE_REF, [0]), (SEQUENCE, [0, 1])], [2]) == set()
    assert _productive_rules([(TEXT, [97]), (RULE_REF, [0]), (SEQUENCE, [0, 1]), (CHOICES, [2, 0])], [3]) == {0}
