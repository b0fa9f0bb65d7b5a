"""`/v1/messages` as the `anthropic` client sees it, over real sockets."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import pytest
from http_support import FakeService, RunningApi, ids, serving, tokenizer

USER: list[Any] = [{"role": "user", "content": "Tell me a tale."}]
STORY = "Once upon a time 🙂 there was a rabbit."
TOOLS: list[Any] = [{"name": "weather", "description": "of a city", "input_schema": {"type": "object"}}]
CALLING = 'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo 🙂"}}\n</tool_call>'


@asynccontextmanager
async def client_of(service: FakeService, **settings: Any) -> AsyncIterator[tuple[Any, RunningApi]]:
    async with (
        serving(service, **settings) as api,
        anthropic.AsyncAnthropic(base_url=api.url, api_key="unused", max_retries=0) as client,
    ):
        yield client, api


@pytest.mark.parametrize("burst_size", [1, 3, 50])
async def test_a_message_whole_and_streamed(burst_size: int) -> None:
    async with client_of(FakeService(STORY, burst_size=burst_size)) as (client, api):
        whole = await client.messages.create(model="demo", max_tokens=50, messages=USER, system="Be brief.")
        async with client.messages.stream(model="demo", max_tokens=50, messages=USER, system="Be brief.") as stream:
            pieces = [text async for text in stream.text_stream]
            streamed = await stream.get_final_message()
    assert "".join(pieces) == STORY
    for message in (whole, streamed):
        assert (message.role, message.model, message.stop_reason, message.stop_sequence) == (
            "assistant",
            "demo",
            "end_turn",
            None,
        )
        assert [(block.type, block.text) for block in message.content] == [("text", STORY)]
        assert message.usage.output_tokens == len(ids(STORY)) + 1
        assert message.usage.input_tokens == len(api.service.requests[0].prompt_ids)
    prompt = tokenizer().decode(api.service.requests[0].prompt_ids)
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>")


async def test_what_ends_a_message() -> None:
    async with client_of(FakeService(STORY)) as (client, _):
        stopped = await client.messages.create(model="demo", max_tokens=50, messages=USER, stop_sequences=["rab", "x"])
        cut = await client.messages.create(model="demo", max_tokens=3, messages=USER)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "rab")
    assert stopped.content[0].text == STORY[: STORY.index("rab")]
    assert (cut.stop_reason, cut.stop_sequence) == ("max_tokens", None)


@pytest.mark.parametrize("burst_size", [1, 4, 100])
async def test_thoughts_and_tool_calls_are_blocks(burst_size: int) -> None:
    service = FakeService(f"<think>Hm.</think>\n{CALLING}", burst_size=burst_size)
    wanted: Any = {"model": "demo", "max_tokens": 90, "messages": USER, "tools": TOOLS}
    async with client_of(service, splits_reasoning=True) as (client, _):
        whole = await client.messages.create(**wanted)
        async with client.messages.stream(**wanted) as stream:
            streamed = await stream.get_final_message()
    for message in (whole, streamed):
        assert message.stop_reason == "tool_use"
        thinking, text, call = message.content
        assert (thinking.type, thinking.thinking) == ("thinking", "Hm.")
        assert (text.type, text.text) == ("text", "Let me look.")
        assert (call.type, call.name, call.input) == ("tool_use", "weather", {"city": "Oslo 🙂"})
        assert call.id


async def test_tool_results_go_back_to_the_model() -> None:
    messages = [
        *USER,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "call_1", "name": "weather", "input": {}}]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "text", "text": "rain"}]},
                {"type": "text", "text": "And now?"},
            ],
        },
    ]
    async with client_of(FakeService()) as (client, api):
        await client.messages.create(model="demo", max_tokens=9, messages=messages, tools=TOOLS)
    prompt = tokenizer().decode(api.service.requests[0].prompt_ids)
    turns = "<|im_start|>tool\nrain<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.endswith(turns)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "'image' block"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "'robot'"),
        ({"messages": []}, "at least 1 message"),
        ({"temperature": 9.0}, "between 0 and 2"),
        ({"max_tokens": 5000}, "1024"),
        ({"tool_choice": {"type": "sometimes"}}, "auto, any, none, or tool"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "only custom tools"),
        ({"tools": False}, "tools"),
        ({"thinking": {"type": "maybe"}}, "enabled, disabled or adaptive"),
    ],
)
async def test_errors_have_anthropics_shape(fields: dict[str, Any], expected: str) -> None:
    async with client_of(FakeService()) as (client, _):
        with pytest.raises(anthropic.BadRequestError) as caught:
            await client.messages.create(model="demo", max_tokens=9, messages=USER, extra_body=fields)
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(model="other", max_tokens=9, messages=USER)
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert expected in body["error"]["message"]
