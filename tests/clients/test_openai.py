"""The official Python client: blocking and not, streaming helpers, tools, parsed output, responses."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from http_support import FakeService, serving_in_thread
from pydantic import BaseModel, Field

STORY = "Once upon a time 🙂 there was a rabbit."
CALLING = 'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo 🙂"}}\n</tool_call>'
USER: list[Any] = [{"role": "user", "content": "Tell me a tale."}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]


class Weather(BaseModel):
    city: str = Field(max_length=20)
    days: int = Field(ge=0, le=30)


@contextmanager
def client_of(reply: str, **settings: Any) -> Iterator[openai.OpenAI]:
    with (
        serving_in_thread(FakeService(reply), **settings) as api,
        openai.OpenAI(base_url=f"{api.url}/v1", api_key="unused", max_retries=0) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def real(real_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{real_url}/v1", api_key="unused", max_retries=0) as client:
        yield client


# With this seed the answer ends by itself, as the streaming helpers want it.
def text_of(client: openai.OpenAI, **fields: Any) -> str:
    answer = client.chat.completions.create(model="specedge-demo", messages=USER, seed=7, max_tokens=300, **fields)
    return answer.choices[0].message.content or ""


def test_real_answers_whole_streamed_and_by_the_helper_are_the_same(real: openai.OpenAI) -> None:
    whole = text_of(real)
    chunks = list(
        real.chat.completions.create(
            model="specedge-demo",
            messages=USER,
            seed=7,
            max_tokens=300,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens < 300
    with real.chat.completions.stream(model="specedge-demo", messages=USER, seed=7, max_tokens=300) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content == whole
    assert text_of(real, extra_body={"speculation": {"enabled": False}}) == whole


def test_real_answers_to_many_clients_at_once(real_url: str) -> None:
    async def ask(client: openai.AsyncOpenAI, index: int) -> str:
        answer = await client.completions.create(
            model="specedge-demo", prompt="Once upon a time", seed=index, max_tokens=24, stream=bool(index % 2)
        )
        if isinstance(answer, openai.AsyncStream):
            return "".join([chunk.choices[0].text async for chunk in answer])
        return answer.choices[0].text

    async def everybody() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{real_url}/v1", api_key="unused", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, 100 + index // 2) for index in range(12)))

    texts = asyncio.run(everybody())
    assert texts[0::2] == texts[1::2]
    assert len(set(texts)) == 6


def test_real_responses_whole_and_streamed(real: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "specedge-demo", "input": "Tell me a tale.", "max_output_tokens": 300}
    whole = real.responses.create(**fields, extra_body={"seed": 7})
    with real.responses.stream(**fields, extra_body={"seed": 7}) as stream:
        streamed = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == streamed
    assert whole.output_text == streamed == text_of(real)


def test_headers_and_request_ids(real: openai.OpenAI) -> None:
    raw = real.chat.completions.with_raw_response.create(
        model="specedge-demo", messages=USER, max_tokens=40, extra_headers={"x-request-id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    answer = raw.parse()
    assert answer.usage is not None
    assert float(raw.headers["x-specedge-tokens-per-verification"]) >= 1
    assert int(raw.headers["x-specedge-accepted-tokens"]) < answer.usage.completion_tokens


def test_errors_have_the_clients_types(real: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        text_of(real, temperature=9)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as unknown:
        real.completions.create(model="other", prompt="a")
    assert unknown.value.code == "model_not_found"


def test_tools_whole_and_streamed() -> None:
    with client_of(CALLING) as client:
        whole = client.chat.completions.create(model="demo", messages=USER, tools=TOOLS)
        with client.chat.completions.stream(model="demo", messages=USER, tools=TOOLS) as stream:
            arguments = [e.arguments_delta for e in stream if e.type == "tool_calls.function.arguments.delta"]
            streamed = stream.get_final_completion()
    for answer in (whole, streamed):
        (call,) = answer.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Oslo 🙂"})
        assert answer.choices[0].finish_reason == "tool_calls"
    assert json.loads("".join(arguments)) == {"city": "Oslo 🙂"}


def test_a_conversation_with_a_tool_and_its_result() -> None:
    def reply(request: Any) -> str:
        return STORY if len(request.prompt_ids) > num_first else CALLING

    num_first = 10**6
    service = FakeService(reply)
    with (
        serving_in_thread(service) as api,
        openai.OpenAI(base_url=f"{api.url}/v1", api_key="unused", max_retries=0) as client,
    ):
        asked = client.chat.completions.create(model="demo", messages=USER, tools=TOOLS).choices[0].message
        num_first = len(service.requests[0].prompt_ids)
        assert asked.tool_calls
        result = {"role": "tool", "tool_call_id": asked.tool_calls[0].id, "content": "sunny"}
        messages = [*USER, asked.model_dump(), result]
        said = client.chat.completions.create(model="demo", messages=messages, tools=TOOLS).choices[0].message
    assert said.content == STORY


def test_parsed_output_of_chats_and_responses(real: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "specedge-demo"}
    for seed in (1, 2):
        extra = {"seed": seed}
        parsed = real.chat.completions.parse(
            **fields, messages=USER, response_format=Weather, max_tokens=200, extra_body=extra
        )
        assert isinstance(parsed.choices[0].message.parsed, Weather)
        response = real.responses.parse(
            **fields, input="The weather?", text_format=Weather, max_output_tokens=200, extra_body=extra
        )
        assert isinstance(response.output_parsed, Weather)
