"""LangChain's ChatOpenAI: invoke, stream, tools, structured output by tools."""

import asyncio
from typing import Any

import pytest
from http_support import FakeService, serving_in_thread

CALLING = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo 🙂"}}\n</tool_call>'


@pytest.fixture
def chat() -> Any:
    module = pytest.importorskip("langchain_openai", reason="needs langchain-openai: make test-clients")

    def make(url: str, model: str = "specedge-demo", **more: Any) -> Any:
        server = {"base_url": f"{url}/v1", "api_key": "unused", "max_retries": 0}
        return module.ChatOpenAI(model=model, max_tokens=300, extra_body={"seed": 7}, **server, **more)

    return make


def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def test_real_answers_invoked_streamed_and_without_blocking(real_url: str, chat: Any) -> None:
    model = chat(real_url, stream_usage=True)
    answer = model.invoke("Tell me a tale.")
    assert answer.content and answer.usage_metadata["output_tokens"] > 0
    chunks = list(model.stream("Tell me a tale."))
    assert "".join(chunk.content for chunk in chunks) == answer.content
    total = sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata)
    assert total == answer.usage_metadata["output_tokens"]
    assert asyncio.run(model.ainvoke("Tell me a tale.")).content == answer.content
    assert len(model.batch(["One?", "Two?"])) == 2


def test_real_answers_of_the_responses_api(real_url: str, chat: Any) -> None:
    answer = chat(real_url, use_responses_api=True).invoke("Tell me a tale.")
    assert answer.text


def test_tools(chat: Any) -> None:
    with serving_in_thread(FakeService(CALLING)) as api:
        model = chat(api.url, "demo").bind_tools([weather])
        whole = model.invoke("The weather in Oslo?")
        streamed = None
        for chunk in model.stream("The weather in Oslo?"):
            streamed = chunk if streamed is None else streamed + chunk
    for message in (whole, streamed):
        (call,) = message.tool_calls
        assert (call["name"], call["args"]) == ("weather", {"city": "Oslo 🙂"})
        assert message.response_metadata["finish_reason"] == "tool_calls"
