"""Request fields: what is accepted, what is refused and how the refusal names it, and what becomes of the fields."""

import json
from dataclasses import replace
from typing import Any

import pytest

from edge_agent.http.api_docs import body_docs
from edge_agent.http.body import parse_json_object
from edge_agent.http.errors import ContextLengthExceeded
from edge_agent.http.sampling_fields import (
    build_sampling,
    choice_seed,
    fit_answer,
    num_choices,
    stop_strings,
    wire_salt,
)
from edge_agent.http.schema import ChatRequest, CompletionRequest, parse_fields
from edge_agent.http.settings import HttpSettings
from edge_agent.http.unbuilt import refuse_unbuilt_chat_fields, refuse_unbuilt_completion_fields
from specedge.errors import InvalidRequest
from specedge.sampling import SamplingParams
from specedge.wire.messages import DefaultSampling, ServerInfo

DEFAULTS = DefaultSampling(temperature=0.7, top_p=0.9, top_k=50, min_p=0.05, repetition_penalty=1.1)
INFO = ServerInfo("demo", "f", 4096, 1024, 64, (2,), 8, "1", default_sampling=DEFAULTS)
USER = [{"role": "user", "content": "hi"}]


def sampling(settings: HttpSettings | None = None, **fields: Any) -> SamplingParams:
    request = parse_fields(ChatRequest, {"messages": USER, **fields})
    built = build_sampling(request, fields.get("max_tokens") or 16, INFO, settings or HttpSettings())
    built.validate(INFO.vocab_size)
    return built


def refusal(call: Any, *args: Any, **kwargs: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        call(*args, **kwargs)
    return caught.value


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"a": 1,}', "line 1 column 9"),
        (b'{\n"a": nope}', "line 2 column"),
        (b"", "line 1 column 0"),
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"a": -Infinity}', "not valid JSON"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b"[" * 100_000, "recursion limit"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[]", "a list"),
        (b'"{}"', "a string"),
        (b"null", "null"),
        (b"true", "a boolean"),
        (b"1", "a number"),
    ],
)
def test_broken_json_is_located(body: bytes, expected: str) -> None:
    assert expected in str(refusal(parse_json_object, body))


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("temperature", "hot", "'hot'"),
        ("temperature", True, "true"),
        ("temperature", float("inf"), "inf"),
        ("max_tokens", 1.5, "1.5"),
        ("max_tokens", "5", "'5'"),
        ("max_tokens", 10**30, str(10**30)),
        ("stream", "yes", "'yes'"),
        ("n", [], "a list of 0"),
        ("seed", 2**64, str(2**64)),
        ("logit_bias", [1], "a list of 1"),
        ("logit_bias", dict.fromkeys(map(str, range(1025)), 1), "an object of 1025"),
        ("stop_token_ids", 5, "5"),
        ("ignore_eos", 1, "1"),
        ("model", 3, "3"),
        ("stream_options", True, "true"),
        ("chat_template_kwargs", "x", "'x'"),
    ],
)
def test_wrong_types_name_field_and_value(field: str, value: Any, shown: str) -> None:
    error = refusal(parse_fields, ChatRequest, {"messages": USER, field: value})
    assert error.param == field
    assert str(error).startswith(f"{field} is {shown}; it should be ")


def test_nested_fields_are_named_by_their_path() -> None:
    error = refusal(parse_fields, ChatRequest, {"messages": USER, "stream_options": {"include_usage": "x"}})
    assert error.param == "stream_options.include_usage"
    error = refusal(parse_fields, ChatRequest, {"messages": USER, "stop_token_ids": [1, "2"]})
    assert error.param == "stop_token_ids[1]"


def test_long_values_are_cut_in_messages() -> None:
    assert len(str(refusal(parse_fields, ChatRequest, {"messages": USER, "model": ["x"] * 10**5}))) < 200
    assert len(str(refusal(parse_fields, ChatRequest, {"messages": USER, "n": "x" * 10**5}))) < 200


def test_missing_fields_are_named() -> None:
    assert refusal(parse_fields, ChatRequest, {}).param == "messages"
    assert refusal(parse_fields, CompletionRequest, {}).param == "prompt"


def test_every_optional_field_may_be_null_and_unknown_ones_are_ignored() -> None:
    optional = {name: None for name in ChatRequest.model_fields if name != "messages"}
    nulls = parse_fields(ChatRequest, {"messages": USER, **optional, "unheard_of": {"a": 1}, "user": 5})
    assert nulls == parse_fields(ChatRequest, {"messages": USER})


def test_left_out_sampling_fields_take_the_targets_defaults() -> None:
    built = sampling()
    assert (built.temperature, built.top_p, built.top_k, built.min_p) == (0.7, 0.9, 50, 0.05)
    assert (built.repetition_penalty, built.presence_penalty, built.frequency_penalty) == (1.1, 0.0, 0.0)


def test_the_operators_settings_come_before_the_targets_defaults_and_after_the_request() -> None:
    settings = HttpSettings(temperature=0.3, seed=5)
    assert (sampling(settings).temperature, sampling(settings).seed) == (0.3, 5)
    asked = sampling(settings, temperature=0.9, seed=6)
    assert (asked.temperature, asked.seed) == (0.9, 6)


def test_zeros_in_a_request_are_not_taken_for_left_out() -> None:
    built = sampling(temperature=0, top_k=0, min_p=0, seed=0)
    assert (built.temperature, built.top_k, built.min_p, built.seed) == (0, 0, 0, 0)


def test_given_fields_arrive() -> None:
    built = sampling(
        presence_penalty=-1,
        frequency_penalty=2,
        repetition_penalty=1.5,
        logit_bias={"7": -100, "8": 1.5},
        min_tokens=3,
        ignore_eos=True,
        stop_token_ids=[9],
        top_k=-1,
        top_p=0.5,
        max_tokens=4,
    )
    expected = SamplingParams(
        temperature=0.7,
        top_p=0.5,
        top_k=0,
        min_p=0.05,
        presence_penalty=-1.0,
        max_tokens=4,
        frequency_penalty=2.0,
        repetition_penalty=1.5,
        logit_bias=((7, -100.0), (8, 1.5)),
        min_tokens=3,
        ignore_eos=True,
        stop_token_ids=(9,),
    )
    assert replace(built, seed=0) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", -2),
        ("min_p", 2),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("repetition_penalty", 0),
        ("min_tokens", 17),
        ("stop_token_ids", [4096]),
        ("logit_bias", {"4096": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"01": 1, "1": 1}),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, value: Any) -> None:
    assert refusal(sampling, **{field: value}).param == field


def test_seeds_map_into_the_unsigned_range() -> None:
    assert sampling(seed=-1).seed == 2**64 - 1
    assert sampling(seed=-(2**63)).seed == 2**63
    assert sampling(seed=2**64 - 1).seed == 2**64 - 1
    assert choice_seed(2**64 - 1, 2) == 1
    drawn = {sampling().seed for _ in range(8)}
    assert len(drawn) == 8
    assert all(0 <= seed < 2**63 for seed in drawn)


@pytest.mark.parametrize(("value", "expected"), [(None, ()), ("a", ("a",)), (["a", "b"], ("a", "b")), ([], ())])
def test_stop_forms(value: Any, expected: tuple[str, ...]) -> None:
    assert stop_strings(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["x"] * 17, "17 strings; it may have at most 16"),
        ("", "0 characters"),
        (["a", ""], "stop[1] has 0 characters"),
        ("x" * 1001, "1001 characters; it must have 1 to 1000"),
        ([1], "stop[0] is 1"),
        (5, "stop is 5"),
        ({"a": 1}, "an object of 1"),
    ],
)
def test_bad_stops(value: Any, expected: str) -> None:
    error = refusal(stop_strings, value)
    assert expected in str(error)
    assert error.param == "stop"


def test_number_of_choices() -> None:
    assert num_choices(parse_fields(ChatRequest, {"messages": USER})) == 1
    assert num_choices(parse_fields(ChatRequest, {"messages": USER, "n": 8})) == 8
    for n in (0, 9, -1):
        assert f"n is {n}; it must be between 1 and 8" in str(
            refusal(num_choices, parse_fields(ChatRequest, {"messages": USER, "n": n}))
        )


def fit(num_prompt: int, asked: int | None, default: int | None = None) -> int:
    return fit_answer(num_prompt, asked, default, 100, asked_in="max_tokens", prompt_in="messages")


def test_answers_fit_the_context() -> None:
    assert fit(90, None) == 10
    assert fit(90, None, default=5) == 5
    assert fit(90, None, default=50) == 10
    assert fit(90, 10, default=5) == 10
    assert fit(99, 1) == 1


def test_answers_that_do_not_fit_name_the_numbers() -> None:
    error = refusal(fit, 90, 11)
    assert isinstance(error, ContextLengthExceeded)
    assert "maximum context length is 100 tokens" in str(error)
    assert "101 were asked for: 90 in the prompt and 11 in max_tokens" in str(error)
    assert error.param == "max_tokens"
    error = refusal(fit, 100, None)
    assert isinstance(error, ContextLengthExceeded)
    assert "100" in str(error)
    assert error.param == "messages"
    assert "max_tokens is 0; it must be at least 1" in str(refusal(fit, 5, 0))


NEUTRAL_CHAT = {
    "tools": [],
    "tool_choice": "none",
    "functions": [],
    "function_call": "none",
    "response_format": {"type": "text"},
    "logprobs": False,
    "top_logprobs": 0,
    "modalities": ["text"],
    "store": False,
    "service_tier": "auto",
    "echo": False,
    "skip_special_tokens": True,
    "include_stop_str_in_output": False,
    "bad_words": [],
    "priority": 0,
    "length_penalty": 1.0,
    "metadata": {"a": "b"},
    "user": "u",
    "parallel_tool_calls": True,
}


def test_a_salt_is_hashed_before_it_leaves_the_edge() -> None:
    assert wire_salt(None) == b"" and len(wire_salt("a")) == 32
    assert wire_salt("a") != wire_salt("b") and wire_salt("\ud800") != wire_salt("a")
    assert "cache_salt is empty" in str(refusal(wire_salt, ""))


def test_fields_that_ask_for_nothing_unbuilt_are_accepted() -> None:
    refuse_unbuilt_chat_fields({**NEUTRAL_CHAT, "audio": None, "prediction": None})
    refuse_unbuilt_completion_fields({"best_of": 1, "suffix": "", "echo": False, "logprobs": None, "stop": None})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{}]),
        ("audio", {"voice": "x"}),
        ("modalities", ["text", "audio"]),
        ("thinking_token_budget", 5),
        ("watermarking", True),
        ("echo", True),
        ("echo", 0),
    ],
)
def test_unbuilt_chat_fields_are_refused_by_name(field: str, value: Any) -> None:
    error = refusal(refuse_unbuilt_chat_fields, {"messages": USER, field: value})
    assert error.param == field
    assert "not supported" in str(error)


@pytest.mark.parametrize(("field", "value"), [("suffix", "x"), ("best_of", 2)])
def test_unbuilt_completion_fields_are_refused_by_name(field: str, value: Any) -> None:
    assert refusal(refuse_unbuilt_completion_fields, {"prompt": "x", field: value}).param == field


def test_schemas_for_the_docs_are_self_contained() -> None:
    for model in (ChatRequest, CompletionRequest):
        assert "$ref" not in json.dumps(body_docs(model))
