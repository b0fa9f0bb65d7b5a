"""Whatever is drawn from the masks is valid, and a tree's masks are those of its paths."""

import json
from typing import Any

import numpy as np
from grammar_support import EOS, allowed, compiled, tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MAX_STEPS = 400
SETTINGS = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])

leaves = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.tuples(st.integers(-50, 50), st.integers(0, 100)).map(
        lambda pair: {"type": "integer", "minimum": pair[0], "maximum": pair[0] + pair[1]}
    ),
    st.lists(st.sampled_from(["red", 'a "b"', "é", 3, None, "x\ny"]), min_size=1, max_size=3).map(
        lambda values: {"enum": values}
    ),
    st.just({"type": "string", "pattern": "^[a-z]{1,3}-[0-9]+$"}),
    st.integers(0, 3).map(lambda size: {"type": "string", "minLength": size, "maxLength": size + 2}),
)


def grown(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    properties = st.dictionaries(st.sampled_from(["a", "b c", 'd"', "é"]), inner, min_size=1, max_size=3)
    return st.one_of(
        st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
            lambda made: {"type": "array", "items": made[0], "minItems": made[1], "maxItems": made[1] + made[2]}
        ),
        st.tuples(properties, st.booleans()).map(
            lambda made: {
                "type": "object",
                "properties": made[0],
                "required": sorted(made[0])[: len(made[0]) if made[1] else 1],
                "additionalProperties": False,
            }
        ),
        st.lists(inner, min_size=1, max_size=2).map(lambda branches: {"anyOf": branches}),
    )


schemas = st.recursive(leaves, grown, max_leaves=5)


def is_valid(value: Any, schema: dict[str, Any]) -> bool:
    """Validation for the family above, and no more."""
    if "anyOf" in schema:
        return any(is_valid(value, branch) for branch in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    match schema["type"]:
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "integer":
            return isinstance(value, int) and schema["minimum"] <= value <= schema["maximum"]
        case "string" if "pattern" in schema:
            letters, _, digits = value.partition("-")
            return 1 <= len(letters) <= 3 and letters.islower() and digits.isdigit()
        case "string":
            return schema["minLength"] <= len(value) <= schema["maxLength"]
        case "array":
            is_long_enough = schema["minItems"] <= len(value) <= schema["maxItems"]
            return is_long_enough and all(is_valid(item, schema["items"]) for item in value)
    assert schema["type"] == "object"
    known = schema["properties"]
    is_named = set(schema["required"]) <= value.keys() <= known.keys()
    return is_named and all(is_valid(item, known[name]) for name, item in value.items())


def drawn(state, rng: np.random.Generator, is_hasty: bool) -> list[int]:
    """Tokens drawn from the masks until the end; a hasty walk keeps off whitespace and ends as soon as it may."""
    tokens: list[int] = []
    while not state.is_ended and len(tokens) < MAX_STEPS:
        options = allowed(state.masks([], [])[0])
        assert options, "stuck"
        if is_hasty and EOS in options:
            options = {EOS}
        elif is_hasty:
            options = {token for token in options if tokenizer().decode([token]).strip()} or options
        token = int(rng.choice(sorted(options)))
        assert state.accept([token]) == 1
        tokens.append(token)
    return tokens


@SETTINGS
@given(schemas, st.integers(0, 2**32), st.booleans())
def test_a_finished_answer_parses_and_follows_its_schema(schema, seed, is_hasty) -> None:
    state = compiled("json_schema", schema).start()
    tokens = drawn(state, np.random.default_rng(seed), is_hasty)
    if not state.is_ended:  # a long walk through whitespace
        assert not is_hasty
        return
    assert tokens[-1] == EOS
    value = json.loads(tokenizer().decode(tokens[:-1]))
    assert is_valid(value, schema), value


@SETTINGS
@given(schemas, st.integers(0, 2**32), st.data())
def test_a_trees_masks_are_those_of_fresh_states_along_each_path(schema, seed, data) -> None:
    grammar = compiled("json_schema", schema)
    rng = np.random.default_rng(seed)
    committed = drawn(grammar.start(), rng, is_hasty=True)[:-1]
    committed = committed[: data.draw(st.integers(0, len(committed)))]
    state = grammar.start()
    assert state.accept(committed) == len(committed)
    fresh: list[Any] = [grammar.start()]
    fresh[0].accept(committed)
    parents, tokens = [], []
    for _ in range(data.draw(st.integers(1, 12))):
        parent = data.draw(st.integers(0, len(parents)))
        options = sorted(allowed(fresh[parent].masks([], [])[0])) if fresh[parent] is not None else []
        is_wild = not options or data.draw(st.booleans())
        token = int(rng.integers(4096)) if is_wild else int(rng.choice(options))
        parents.append(parent)
        tokens.append(token)
        fresh.append(following(grammar, committed, parents, tokens) if token in options else None)
    masks = state.masks(parents, tokens)
    for expected, mask in zip(fresh, masks, strict=True):
        if expected is None or expected.is_ended:
            assert (mask == -1).all()
        else:
            assert (expected.masks([], [])[0] == mask).all()
    assert (state.masks([], [])[0] == masks[0]).all()


def following(grammar, committed: list[int], parents: list[int], tokens: list[int]):
    """A fresh state at the last node."""
    row, path = len(parents), []
    while row:
        path.append(tokens[row - 1])
        row = parents[row - 1]
    state = grammar.start()
    assert state.accept([*committed, *reversed(path)]) == len(committed) + len(path)
    return state
