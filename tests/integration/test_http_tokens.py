"""`/tokenize` and `/detokenize` over a socket."""

from typing import Any

import anthropic
import httpx
import pytest
from http_support import FakeService, serving, tokenizer

MESSAGES = [{"role": "user", "content": "Tell me a tale 🙂"}]


async def post(path: str, body: dict[str, Any]) -> httpx.Response:
    async with serving(FakeService()) as api, httpx.AsyncClient(base_url=api.url) as client:
        return await client.post(path, json=body)


async def test_a_text_there_and_back() -> None:
    answer = (await post("/tokenize", {"prompt": "Once upon 🙂", "return_token_strs": True})).json()
    wanted = tokenizer()("Once upon 🙂").input_ids
    assert answer == {
        "tokens": wanted,
        "count": len(wanted),
        "max_model_len": 1024,
        "token_strs": tokenizer().convert_ids_to_tokens(wanted),
    }
    assert (await post("/detokenize", {"tokens": wanted})).json() == {"prompt": "Once upon 🙂"}
    assert (await post("/detokenize", {"tokens": []})).json() == {"prompt": ""}


async def test_the_length_of_a_conversation_in_anthropics_form() -> None:
    asked = {"system": "Be brief.", "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}
    async with (
        serving(FakeService()) as api,
        anthropic.AsyncAnthropic(base_url=api.url, api_key="unused", max_retries=0) as client,
    ):
        counted = await client.messages.count_tokens(model="demo", **asked)
        answered = await client.messages.create(model="demo", max_tokens=9, **asked)
        with pytest.raises(anthropic.BadRequestError, match="at least 1 message"):
            await client.messages.count_tokens(model="demo", messages=[])
    assert counted.input_tokens == answered.usage.input_tokens == len(api.service.requests[0].prompt_ids)


@pytest.mark.parametrize("fields", [{}, {"add_generation_prompt": False}])
async def test_a_conversation_as_generation_sees_it(fields: dict[str, Any]) -> None:
    answer = (await post("/tokenize", {"messages": MESSAGES, **fields})).json()
    wanted = tokenizer().apply_chat_template(MESSAGES, **{"add_generation_prompt": True, **fields})["input_ids"]
    assert answer["tokens"] == wanted
    text = (await post("/detokenize", {"tokens": wanted})).json()["prompt"]
    assert text.startswith("<|im_start|>user")


@pytest.mark.parametrize(
    ("path", "body", "param", "expected"),
    [
        ("/tokenize", {}, "prompt", "either prompt or messages"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt", "either prompt or messages"),
        ("/tokenize", {"prompt": 3}, "prompt", "valid string"),
        ("/tokenize", {"prompt": "x" * 20_000}, "prompt", "20000 characters; at most 16384"),
        ("/tokenize", {"messages": []}, "messages", "at least 1 message"),
        ("/tokenize", {"messages": MESSAGES, "chat_template": "x"}, "chat_template", "not supported here"),
        ("/tokenize", {"messages": MESSAGES, "tools": {}}, "tools", "a list of tools"),
        ("/tokenize", {"prompt": "a", "model": "other"}, "model", "'other' does not exist"),
        ("/detokenize", {"tokens": [1, 5000]}, "tokens", "between 0 and 4095"),
        ("/detokenize", {"tokens": "no"}, "tokens", "valid list"),
        ("/detokenize", {}, "tokens", "tokens is required"),
    ],
)
async def test_bad_values_are_named(path: str, body: dict[str, Any], param: str, expected: str) -> None:
    response = await post(path, body)
    assert response.status_code == (404 if param == "model" else 400)
    error = response.json()["error"]
    assert error["param"] == param.partition("[")[0]
    assert expected in error["message"]
