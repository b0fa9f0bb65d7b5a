"""Every refused sampling value is named together with its limit."""

import math
from typing import Any

import pytest

from specedge.errors import InvalidRequest
from specedge.sampling import SamplingParams

VOCAB_SIZE = 100

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("temperature", {"temperature": -0.1}, "temperature is -0.1; it must be between 0 and 2"),
    ("temperature", {"temperature": 2.01}, "temperature is 2.01; it must be between 0 and 2"),
    ("temperature", {"temperature": math.nan}, "temperature is nan; it must be between 0 and 2"),
    ("temperature", {"temperature": math.inf}, "temperature is inf; it must be between 0 and 2"),
    ("top_p", {"top_p": 0.0}, "top_p is 0.0; it must be greater than 0 and at most 1"),
    ("top_p", {"top_p": 1.5}, "top_p is 1.5; it must be greater than 0 and at most 1"),
    ("top_p", {"top_p": math.nan}, "top_p is nan; it must be greater than 0 and at most 1"),
    ("top_k", {"top_k": -1}, "top_k is -1; it must be between 0 and 100"),
    ("top_k", {"top_k": 101}, "top_k is 101; it must be between 0 and 100"),
    ("min_p", {"min_p": -0.01}, "min_p is -0.01; it must be between 0 and 1"),
    ("min_p", {"min_p": 1.01}, "min_p is 1.01; it must be between 0 and 1"),
    ("min_p", {"min_p": math.nan}, "min_p is nan; it must be between 0 and 1"),
    ("presence_penalty", {"presence_penalty": 2.5}, "presence_penalty is 2.5; it must be between -2 and 2"),
    ("presence_penalty", {"presence_penalty": math.nan}, "presence_penalty is nan; it must be between -2 and 2"),
    ("frequency_penalty", {"frequency_penalty": -2.5}, "frequency_penalty is -2.5; it must be between -2 and 2"),
    ("frequency_penalty", {"frequency_penalty": math.nan}, "frequency_penalty is nan; it must be between -2 and 2"),
    (
        "repetition_penalty",
        {"repetition_penalty": 0.0},
        "repetition_penalty is 0.0; it must be finite and greater than 0",
    ),
    (
        "repetition_penalty",
        {"repetition_penalty": -1.0},
        "repetition_penalty is -1.0; it must be finite and greater than 0",
    ),
    (
        "repetition_penalty",
        {"repetition_penalty": math.inf},
        "repetition_penalty is inf; it must be finite and greater than 0",
    ),
    (
        "repetition_penalty",
        {"repetition_penalty": math.nan},
        "repetition_penalty is nan; it must be finite and greater than 0",
    ),
    ("seed", {"seed": -1}, "seed is -1; it must be between 0 and 18446744073709551615"),
    ("seed", {"seed": 2**64}, "seed is 18446744073709551616; it must be between 0 and 18446744073709551615"),
    ("max_tokens", {"max_tokens": 0}, "max_tokens is 0; it must be at least 1"),
    ("min_tokens", {"min_tokens": -1}, "min_tokens is -1; it must be between 0 and max_tokens (16)"),
    ("min_tokens", {"min_tokens": 9, "max_tokens": 8}, "min_tokens is 9; it must be between 0 and max_tokens (8)"),
    (
        "logit_bias",
        {"logit_bias": tuple((index, 0.0) for index in range(1025))},
        "logit_bias has 1025 entries; it may hold at most 1024",
    ),
    ("logit_bias", {"logit_bias": ((100, 1.0),)}, "logit_bias has token id 100; it must name ids between 0 and 99"),
    ("logit_bias", {"logit_bias": ((-1, 1.0),)}, "logit_bias has token id -1; it must name ids between 0 and 99"),
    (
        "logit_bias",
        {"logit_bias": ((7, 1.0), (7, 2.0))},
        "logit_bias has token id 7 twice; it may name each token id at most 1 time",
    ),
    (
        "logit_bias",
        {"logit_bias": ((7, 100.5),)},
        "logit_bias is 100.5 for token id 7; it must be between -100 and 100",
    ),
    (
        "logit_bias",
        {"logit_bias": ((7, math.nan),)},
        "logit_bias is nan for token id 7; it must be between -100 and 100",
    ),
    (
        "stop_token_ids",
        {"stop_token_ids": (1,) * 129},
        "stop_token_ids has 129 ids; it may hold at most 128",
    ),
    (
        "stop_token_ids",
        {"stop_token_ids": (3, 100)},
        "stop_token_ids has token id 100; it must name ids between 0 and 99",
    ),
    (
        "stop_token_ids",
        {"stop_token_ids": (-3,)},
        "stop_token_ids has token id -3; it must name ids between 0 and 99",
    ),
    ("logprobs", {"num_logprobs": 21}, "logprobs is 21; it must be between 0 and 20"),
    ("logprobs", {"num_logprobs": -1}, "logprobs is -1; it must be between 0 and 20"),
    ("prompt_logprobs", {"num_prompt_logprobs": 21}, "prompt_logprobs is 21; it must be between 0 and 20"),
    ("bad_words", {"bad_words": ((1,),) * 257}, "bad_words has 257 spellings; it may have at most 256"),
    (
        "bad_words",
        {"bad_words": ((1,), ())},
        "bad_words has a spelling of 0 tokens; it may have spellings of 1 to 64",
    ),
    (
        "bad_words",
        {"bad_words": ((1,) * 65,)},
        "bad_words has a spelling of 65 tokens; it may have spellings of 1 to 64",
    ),
    ("bad_words", {"bad_words": ((1, 100),)}, "bad_words has token id 100; it must name ids between 0 and 99"),
    (
        "allowed_token_ids",
        {"allowed_token_ids": (1,) * 4097},
        "allowed_token_ids has 4097 ids; it may hold at most 4096",
    ),
    (
        "allowed_token_ids",
        {"allowed_token_ids": (100,)},
        "allowed_token_ids has token id 100; it must name ids between 0 and 99",
    ),
]


@pytest.mark.parametrize(("field", "values", "message"), REFUSED)
def test_a_refusal_names_field_value_and_limit(field: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        SamplingParams(**values).validate(VOCAB_SIZE)
    assert str(refusal.value) == message
    assert refusal.value.param == field


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"temperature": 0.0, "top_p": 1e-9, "top_k": 0, "min_p": 0.0, "seed": 0, "max_tokens": 1, "min_tokens": 1},
        {"temperature": 2.0, "top_p": 1.0, "top_k": 100, "min_p": 1.0, "seed": 2**64 - 1},
        {"presence_penalty": -2.0, "frequency_penalty": -2.0, "repetition_penalty": 1e-3},
        {"presence_penalty": 2.0, "frequency_penalty": 2.0, "repetition_penalty": 1e3},
        {"logit_bias": ((0, -100.0), (99, 100.0)), "stop_token_ids": (0, 99) * 64},
        {"num_logprobs": 0, "num_prompt_logprobs": 20, "bad_words": ((99,) * 64,) * 256, "allowed_token_ids": (0, 99)},
    ],
)
def test_the_limits_themselves_are_allowed(values: dict[str, Any]) -> None:
    SamplingParams(**values).validate(VOCAB_SIZE)


def test_1024_bias_entries_are_allowed() -> None:
    SamplingParams(logit_bias=tuple((index, 1.0) for index in range(1024))).validate(2000)


@pytest.mark.parametrize(
    ("values", "is_greedy", "needs_paths", "edits_logits"),
    [
        ({}, False, False, False),
        ({"temperature": 0.0}, True, False, False),
        ({"temperature": 9e-6}, True, False, False),
        ({"temperature": 1e-5}, False, False, False),
        ({"presence_penalty": 0.1}, False, True, True),
        ({"frequency_penalty": -0.1}, False, True, True),
        ({"repetition_penalty": 1.1}, False, True, True),
        ({"logit_bias": ((1, 1.0),)}, False, False, True),
        ({"min_tokens": 1}, False, False, True),
        ({"top_k": 5, "top_p": 0.5, "min_p": 0.5, "stop_token_ids": (3,)}, False, False, False),
        ({"bad_words": ((3,),), "allowed_token_ids": (1, 3)}, False, False, True),
        ({"bad_words": ((3,), (4, 5))}, False, True, True),
        ({"num_logprobs": 3, "num_prompt_logprobs": 3}, False, False, False),
    ],
)
def test_what_a_choice_needs(values: dict[str, Any], is_greedy: bool, needs_paths: bool, edits_logits: bool) -> None:
    params = SamplingParams(**values)
    assert (params.is_greedy, params.needs_paths, params.edits_logits) == (is_greedy, needs_paths, edits_logits)
    assert params.has_penalties == (needs_paths and not params.bad_words)
