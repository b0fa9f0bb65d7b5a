"""The official Anthropic client, blocking and not."""

import asyncio
from typing import Any

import anthropic
import pytest
from http_support import FakeService, serving_in_thread

CALLING = 'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo 🙂"}}\n</tool_call>'
USER: list[Any] = [{"role": "user", "content": "Tell me a tale."}]
TOOLS: list[Any] = [{"name": "weather", "description": "of a city", "input_schema": {"type": "object"}}]
FIELDS: dict[str, Any] = {"model": "specedge-demo", "max_tokens": 300, "messages": USER, "extra_body": {"seed": 7}}


def test_real_messages_whole_and_streamed(real_url: str) -> None:
    with anthropic.Anthropic(base_url=real_url, api_key="unused", max_retries=0) as client:
        whole = client.messages.create(**FIELDS)
        with client.messages.stream(**FIELDS) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        with pytest.raises(anthropic.BadRequestError) as refused:
            client.messages.create(**(FIELDS | {"extra_body": {"temperature": 9}}))
    assert whole.content[0].text == text == final.content[0].text
    assert whole.usage.output_tokens == final.usage.output_tokens > 0
    assert "temperature" in str(refused.value)


def test_real_messages_without_blocking(real_url: str) -> None:
    async def ask() -> list[str]:
        async with anthropic.AsyncAnthropic(base_url=real_url, api_key="unused", max_retries=0) as client:
            answers = await asyncio.gather(*(client.messages.create(**FIELDS) for _ in range(4)))
        return [answer.content[0].text for answer in answers]

    assert len(set(asyncio.run(ask()))) == 1


def test_tools() -> None:
    with (
        serving_in_thread(FakeService(CALLING)) as api,
        anthropic.Anthropic(base_url=api.url, api_key="unused", max_retries=0) as client,
    ):
        answer = client.messages.create(model="demo", max_tokens=99, messages=USER, tools=TOOLS)
        with client.messages.stream(model="demo", max_tokens=99, messages=USER, tools=TOOLS) as stream:
            streamed = stream.get_final_message()
    for message in (answer, streamed):
        assert message.stop_reason == "tool_use"
        text, call = message.content
        assert (text.text, call.name, call.input) == ("Let me look.", "weather", {"city": "Oslo 🙂"})
