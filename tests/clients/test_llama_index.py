"""LlamaIndex's OpenAILike, for chats and for texts."""

import asyncio
from typing import Any

import pytest
from http_support import FakeService, serving_in_thread

CALLING = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


@pytest.fixture
def make() -> Any:
    module = pytest.importorskip("llama_index.llms.openai_like", reason="needs llama-index: make test-clients")

    def made(url: str, model: str = "specedge-demo", **more: Any) -> Any:
        server = {"api_base": f"{url}/v1", "api_key": "unused", "max_retries": 0, "context_window": 1024}
        return module.OpenAILike(model=model, max_tokens=40, additional_kwargs={"seed": 7}, **server, **more)

    return made


def test_real_texts_and_chats_whole_streamed_and_without_blocking(real_url: str, make: Any) -> None:
    llms = pytest.importorskip("llama_index.core.llms")
    text_model = make(real_url, is_chat_model=False)
    text = text_model.complete("Once upon a time").text
    assert text and list(text_model.stream_complete("Once upon a time"))[-1].text == text
    chat_model, messages = (
        make(real_url, is_chat_model=True),
        [llms.ChatMessage(role="user", content="Tell me a tale.")],
    )
    said = chat_model.chat(messages).message.content
    assert said and list(chat_model.stream_chat(messages))[-1].message.content == said
    assert asyncio.run(chat_model.achat(messages)).message.content == said


def test_tools(make: Any) -> None:
    tools = pytest.importorskip("llama_index.core.tools")

    def weather(city: str) -> str:
        """The weather of a city."""
        return f"sunny in {city}"

    with serving_in_thread(FakeService(CALLING)) as api:
        model = make(api.url, "demo", is_chat_model=True, is_function_calling_model=True)
        answer = model.chat_with_tools([tools.FunctionTool.from_defaults(weather)], user_msg="The weather in Oslo?")
        (call,) = model.get_tool_calls_from_response(answer)
    assert (call.tool_name, call.tool_kwargs) == ("weather", {"city": "Oslo"})
