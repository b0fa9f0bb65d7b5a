"""LiteLLM, as an OpenAI-compatible provider."""

import asyncio
import json
from typing import Any

import pytest
from http_support import FakeService, serving_in_thread

CALLING = 'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo 🙂"}}\n</tool_call>'
USER: list[Any] = [{"role": "user", "content": "Tell me a tale."}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]


@pytest.fixture
def litellm(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    module = pytest.importorskip("litellm", reason="needs litellm: make test-clients")
    module.telemetry = False
    return module


def fields(url: str, model: str = "openai/specedge-demo", **more: Any) -> dict[str, Any]:
    server = {"api_base": f"{url}/v1", "api_key": "unused", "max_retries": 0}
    return {"model": model, "messages": USER, "max_tokens": 40, "seed": 7, **server, **more}


def test_real_answers_whole_streamed_and_without_blocking(real_url: str, litellm: Any) -> None:
    whole = litellm.completion(**fields(real_url))
    chunks = list(litellm.completion(**fields(real_url, stream=True, stream_options={"include_usage": True})))
    text = whole.choices[0].message.content
    assert text and "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    later = asyncio.run(litellm.acompletion(**fields(real_url)))
    assert later.choices[0].message.content == text
    assert whole.usage.completion_tokens == later.usage.completion_tokens > 0


def test_a_real_text_completion(real_url: str, litellm: Any) -> None:
    server = {"api_base": f"{real_url}/v1", "api_key": "unused", "max_retries": 0}
    answer = litellm.text_completion(
        model="text-completion-openai/specedge-demo", prompt="Once upon a time", max_tokens=8, **server
    )
    assert answer.choices[0].text


def test_errors_have_its_types(real_url: str, litellm: Any) -> None:
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(**fields(real_url, temperature=9))
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**fields(real_url, "openai/other"))


def test_tools(litellm: Any) -> None:
    with serving_in_thread(FakeService(CALLING)) as api:
        whole = litellm.completion(**fields(api.url, "openai/demo", tools=TOOLS, max_tokens=99))
        chunks = list(litellm.completion(**fields(api.url, "openai/demo", tools=TOOLS, max_tokens=99, stream=True)))
    streamed = litellm.stream_chunk_builder(chunks, messages=USER)
    for answer in (whole, streamed):
        (call,) = answer.choices[0].message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Oslo 🙂"})
        assert answer.choices[0].finish_reason == "tool_calls"
