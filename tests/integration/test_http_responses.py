"""`/v1/responses` as the official client sees it, over real sockets."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from http_support import FakeService, RunningApi, fake_logprobs, ids, serving, tokenizer

from edge_agent.detokenizer import DetokenizerFactory

STORY = "Once upon a time 🙂 there was a rabbit."
TOOLS: list[Any] = [{"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}]
CALLING = 'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo 🙂"}}\n</tool_call>'


def detokenized(token_id: int) -> bytes:
    return DetokenizerFactory(tokenizer()).token_bytes(token_id)


@asynccontextmanager
async def client_of(service: FakeService, **settings: Any) -> AsyncIterator[tuple[Any, RunningApi]]:
    async with (
        serving(service, **settings) as api,
        openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="unused", max_retries=0) as client,
    ):
        yield client, api


@pytest.mark.parametrize("burst_size", [1, 3, 50])
async def test_a_response_whole_and_streamed(burst_size: int) -> None:
    wanted: Any = {"model": "demo", "input": "Tell me a tale.", "instructions": "Be brief.", "metadata": {"a": "b"}}
    async with client_of(FakeService(STORY, burst_size=burst_size)) as (client, api):
        whole = await client.responses.create(**wanted)
        async with client.responses.stream(**wanted) as stream:
            events = [event async for event in stream]
            streamed = await stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == STORY
    kinds = [event.type for event in events if not event.type.endswith(".delta")]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    for response in (whole, streamed):
        assert (response.object, response.status, response.output_text) == ("response", "completed", STORY)
        assert (response.instructions, response.metadata, response.store) == ("Be brief.", {"a": "b"}, False)
        assert response.usage.output_tokens == len(ids(STORY)) + 1
        assert response.usage.input_tokens == len(api.service.requests[0].prompt_ids)
    prompt = tokenizer().decode(api.service.requests[0].prompt_ids)
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nTell me a tale.<|im_end|>")


@pytest.mark.parametrize("burst_size", [1, 4, 100])
async def test_thoughts_and_tool_calls_are_items(burst_size: int) -> None:
    thought = "Hm. 🙂"
    service = FakeService(f"<think>{thought}</think>\n{CALLING}", burst_size=burst_size)
    async with client_of(service, splits_reasoning=True) as (client, _):
        whole = await client.responses.create(model="demo", input="x", tools=TOOLS)
        async with client.responses.stream(model="demo", input="x", tools=TOOLS) as stream:
            streamed = await stream.get_final_response()
    for response in (whole, streamed):
        reasoning, message, call = response.output
        assert (reasoning.type, reasoning.content[0].text) == ("reasoning", thought)
        assert (message.type, message.content[0].text) == ("message", "Let me look.")
        assert (call.type, call.name, call.arguments) == ("function_call", "weather", '{"city": "Oslo 🙂"}')
        assert call.call_id
        assert len({item.id for item in response.output}) == 3
        num_thought = response.usage.output_tokens_details.reasoning_tokens
        assert len(ids(thought)) <= num_thought < response.usage.output_tokens / 2


async def test_the_results_of_calls_go_back_to_the_model() -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
    ]
    async with client_of(FakeService()) as (client, api):
        await client.responses.create(model="demo", input=items, tools=TOOLS)
    prompt = tokenizer().decode(api.service.requests[0].prompt_ids)
    turns = ["user\nWeather?", "assistant\n", "tool\nrain"]
    assert prompt == "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns) + "<|im_start|>assistant\n"


async def test_a_response_cut_short_is_incomplete() -> None:
    async with client_of(FakeService(STORY)) as (client, _):
        response = await client.responses.create(model="demo", input="x", max_output_tokens=3)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")


@pytest.mark.parametrize(
    ("fields", "param", "expected"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "not supported"),
        ({"background": True}, "background", "not supported"),
        ({"input": 3}, "input", "must be a string or a list"),
        ({"input": [{"type": "input_image"}]}, "input[0]", "'input_image' item"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]", "only text"),
        ({"input": []}, "input", "input is empty"),
        ({"input": [{"role": "alien", "content": "x"}], "instructions": "y"}, "input[0].role", "input[0].role is"),
        ({"max_output_tokens": 5000}, "max_output_tokens", "5000 in max_output_tokens"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "'huge'"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "not supported"),
        ({"tools": [{"type": "function", "name": ""}]}, "tools[0].name", "1 to 64"),
        ({"top_logprobs": 21}, "top_logprobs", "between 0 and 20"),
        ({"moderation": {"model": "m"}}, "moderation", "not supported"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "only function tools"),
        ({"temperature": 3}, "temperature", "between 0 and 2"),
    ],
)
async def test_bad_values_are_named(fields: dict[str, Any], param: str, expected: str) -> None:
    async with client_of(FakeService()) as (client, _):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(**{"model": "demo", "input": "x", **fields})
    assert caught.value.param == param
    assert expected in str(caught.value)


LOGPROBS = "message.output_text.logprobs"


@pytest.mark.parametrize("burst_size", [1, 3, 50])
async def test_log_probabilities_are_those_of_the_text(burst_size: int) -> None:
    service = FakeService(STORY, burst_size=burst_size)
    async with client_of(service) as (client, _):
        whole = await client.responses.create(model="demo", input="x", include=[LOGPROBS], top_logprobs=2)
        async with client.responses.stream(model="demo", input="x", include=[LOGPROBS], top_logprobs=2) as stream:
            events = [event async for event in stream]
            streamed = await stream.get_final_response()
        bare = await client.responses.create(model="demo", input="x")
    entries = whole.output[0].content[0].logprobs
    assert [bytes(entry.bytes) for entry in entries] == [detokenized(token_id) for token_id in ids(STORY)]
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == STORY
    expected = fake_logprobs(ids(STORY), 2)
    assert [entry.logprob for entry in entries] == [logprob.logprob for logprob in expected]
    assert [[best.logprob for best in entry.top_logprobs] for entry in entries] == [
        list(logprob.top_logprobs) for logprob in expected
    ]
    assert streamed.output[0].content[0].logprobs == entries
    told = [entry for event in events if event.type == "response.output_text.delta" for entry in event.logprobs]
    (done,) = [event for event in events if event.type == "response.output_text.done"]
    for some in (told, done.logprobs):
        assert [(entry.token, entry.logprob) for entry in some] == [(entry.token, entry.logprob) for entry in entries]
    assert bare.output[0].content[0].logprobs == []


@pytest.mark.parametrize("burst_size", [1, 4, 100])
async def test_thoughts_calls_and_the_end_have_no_log_probabilities(burst_size: int) -> None:
    service = FakeService(f"<think>Hm. 🙂</think>\n{CALLING}", burst_size=burst_size)
    async with client_of(service, splits_reasoning=True) as (client, _):
        wanted: Any = {"model": "demo", "input": "x", "tools": TOOLS, "include": [LOGPROBS]}
        whole = await client.responses.create(**wanted)
        async with client.responses.stream(**wanted) as stream:
            streamed = await stream.get_final_response()
    for response in (whole, streamed):
        (message,) = [item for item in response.output if item.type == "message"]
        text = b"".join(bytes(entry.bytes) for entry in message.content[0].logprobs).decode()
        assert text.strip() == message.content[0].text == "Let me look."
        assert all(entry.top_logprobs == [] for entry in message.content[0].logprobs)


async def test_what_other_endpoints_take_is_taken_here_too() -> None:
    fields: Any = {"top_k": 5, "min_p": 0.1, "stop": ["there"], "presence_penalty": 0.5, "logit_bias": {"7": -100}}
    async with client_of(FakeService(STORY)) as (client, api):
        response = await client.responses.create(model="demo", input="x", extra_body={"seed": 3, **fields})
    assert response.output_text == "Once upon a time 🙂 "
    sampling = api.service.requests[0].sampling
    assert (sampling.top_k, sampling.min_p, sampling.presence_penalty, sampling.seed) == (5, 0.1, 0.5, 3)
    assert sampling.logit_bias == ((7, -100.0),)
