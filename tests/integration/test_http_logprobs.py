"""Log-probabilities, echoed prompts and forbidden words as the official client and lm-eval see them, over sockets."""

import math
from typing import Any

import httpx
import openai
import pytest
from http_support import FakeService, fake_logprobs, ids, serving, tokenizer

STORY = "Once upon a time 🙂 there was a rabbit."
PROMPT = "The old gentleman 🙂 opened"
USER: list[Any] = [{"role": "user", "content": "Tell me a tale."}]
EOS_ID = 2


def client_at(url: str) -> Any:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)


async def post(service: FakeService, path: str, **body: Any) -> httpx.Response:
    async with serving(service) as api, httpx.AsyncClient(base_url=api.url) as client:
        return await client.post(path, json=body)


@pytest.mark.parametrize("burst_size", [1, 3, 50])
async def test_a_chats_log_probabilities_whole_and_streamed(burst_size: int) -> None:
    asked: dict[str, Any] = {"model": "demo", "messages": USER, "logprobs": True, "top_logprobs": 2}
    async with serving(FakeService(STORY, burst_size=burst_size)) as api, client_at(api.url) as client:
        whole = (await client.chat.completions.create(**asked)).choices[0]
        chunks = [chunk.choices[0] async for chunk in await client.chat.completions.create(**asked, stream=True)]
    content = whole.logprobs.content
    expected = [*ids(STORY), EOS_ID]
    assert [entry.logprob for entry in content] == [entry.logprob for entry in fake_logprobs(expected, 2)]
    spelled = b"".join(bytes(entry.bytes) for entry in content[:-1])
    assert spelled.decode() == STORY == whole.message.content
    assert "".join(entry.token for entry in content[:4]) == STORY[: len("".join(e.token for e in content[:4]))]
    assert content[-1].token == "</s>" or bytes(content[-1].bytes)
    for entry, told in zip(content, fake_logprobs(expected, 2), strict=True):
        assert [top.logprob for top in entry.top_logprobs] == list(told.top_logprobs)
        assert all(top.token and bytes(top.bytes).decode(errors="replace") == top.token for top in entry.top_logprobs)
    streamed = [entry for chunk in chunks if chunk.logprobs for entry in chunk.logprobs.content]
    assert streamed == content
    assert "".join(chunk.delta.content or "" for chunk in chunks) == STORY


async def test_a_chat_that_asks_for_no_best_tokens_gets_none_and_one_that_asks_for_nothing_nothing() -> None:
    async with serving(FakeService(STORY)) as api, client_at(api.url) as client:
        bare = (await client.chat.completions.create(model="demo", messages=USER, logprobs=True)).choices[0]
        silent = (await client.chat.completions.create(model="demo", messages=USER)).choices[0]
        assert [request.sampling.num_logprobs for request in api.service.requests] == [0, None]
    assert len(bare.logprobs.content) == len(ids(STORY)) + 1
    assert all(entry.top_logprobs == [] for entry in bare.logprobs.content)
    assert silent.logprobs is None


@pytest.mark.parametrize("burst_size", [1, 4, 50])
async def test_a_completions_log_probabilities_whole_and_streamed(burst_size: int) -> None:
    asked: dict[str, Any] = {"model": "demo", "prompt": PROMPT, "max_tokens": 50, "logprobs": 3}
    async with serving(FakeService(STORY, burst_size=burst_size)) as api, client_at(api.url) as client:
        whole = (await client.completions.create(**asked)).choices[0]
        chunks = [chunk.choices[0] async for chunk in await client.completions.create(**asked, stream=True)]
    told = whole.logprobs
    tokens = [*ids(STORY), EOS_ID]
    assert told.token_logprobs == [entry.logprob for entry in fake_logprobs(tokens, 3)]
    assert told.text_offset[0] == 0 and told.text_offset == sorted(told.text_offset)
    assert told.text_offset[-1] == len(STORY) == len(whole.text)
    for token, offset in zip(told.tokens[:-1], told.text_offset, strict=False):
        assert "\ufffd" in token or whole.text[offset:].startswith(token)
    for token_id, own, name, top in zip(tokens, told.token_logprobs, told.tokens, told.top_logprobs, strict=True):
        assert top[name] == own or "\ufffd" in name
        assert len(top) <= 4
        assert (max(top.values()) == own) == (token_id % 2 == 0), "how lm-eval tells a greedy token"
    for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [x for chunk in chunks if chunk.logprobs for x in getattr(chunk.logprobs, field)] == getattr(told, field)


async def test_tokens_after_a_stop_string_are_not_told() -> None:
    async with serving(FakeService(STORY, burst_size=50)) as api, client_at(api.url) as client:
        answer = await client.completions.create(
            model="demo",
            prompt=PROMPT,
            max_tokens=50,
            logprobs=0,
            stop=[" time"],
            extra_body={"return_token_ids": True},
        )
    (choice,) = answer.choices
    assert choice.text == "Once upon a"
    assert len(choice.logprobs.tokens) == answer.usage.completion_tokens < len(ids(STORY))
    assert choice.token_ids == ids(STORY)[: answer.usage.completion_tokens]
    assert choice.prompt_token_ids == list(tokenizer()(PROMPT).input_ids)
    assert [list(top) for top in choice.logprobs.top_logprobs] == [[token] for token in choice.logprobs.tokens]


@pytest.mark.parametrize("max_tokens", [0, 1])
async def test_scoring_as_lm_eval_does_it(max_tokens: int) -> None:
    """Token ids in, echo, one logprob: the sum over the continuation and whether each of its tokens was the best."""
    texts = [ids("Once upon a time there was a fox"), ids("The old gentleman opened the door")]
    body = {"model": "demo", "prompt": texts, "max_tokens": max_tokens, "logprobs": 1, "echo": True, "temperature": 0}
    service = FakeService(STORY)
    answer = (await post(service, "/v1/completions", **body, seed=1234)).json()
    assert [request.sampling.num_prompt_logprobs for request in service.requests] == [1, 1]
    for choice, text in zip(answer["choices"], texts, strict=True):
        told = choice["logprobs"]
        given = tokenizer().decode(text)
        assert choice["text"] == given + ("" if max_tokens == 0 else tokenizer().decode(ids(STORY)[:1]))
        assert choice["finish_reason"] == "length"
        assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
        own = [entry.logprob for entry in fake_logprobs(text[1:], 1)]
        end = len(text)
        assert told["token_logprobs"][1:end] == own
        assert {len(column) for column in told.values()} == {end + max_tokens}
        greedy = [max(top.values()) == value for top, value in zip(told["top_logprobs"][1:end], own, strict=True)]
        assert greedy == [token_id % 2 == 0 for token_id in text[1:]]
        assert "".join(told["tokens"][:end]) == given
        assert told["text_offset"][:2] == [0, len(told["tokens"][0])]
    assert answer["usage"]["completion_tokens"] == 2 * max_tokens
    assert answer["usage"]["prompt_tokens"] == sum(map(len, texts))


async def test_an_echo_comes_once_and_first_in_a_stream_of_several_answers() -> None:
    asked: dict[str, Any] = {"model": "demo", "prompt": [PROMPT, "Hello"], "echo": True, "n": 2, "max_tokens": 50}
    async with serving(FakeService(STORY)) as api, client_at(api.url) as client:
        texts = ["", "", "", ""]
        async for chunk in await client.completions.create(**asked, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert all(request.sampling.num_prompt_logprobs is None for request in api.service.requests)
        whole = await client.completions.create(**asked)
    assert texts == [PROMPT + STORY] * 2 + ["Hello" + STORY] * 2 == [choice.text for choice in whole.choices]


async def test_a_streamed_echo_with_log_probabilities_tells_the_prompts_first() -> None:
    asked: dict[str, Any] = {"model": "demo", "prompt": PROMPT, "echo": True, "logprobs": 1, "max_tokens": 50}
    async with serving(FakeService(STORY)) as api, client_at(api.url) as client:
        whole = (await client.completions.create(**asked)).choices[0]
        chunks = [chunk.choices[0] async for chunk in await client.completions.create(**asked, stream=True)]
    for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        streamed = [value for chunk in chunks if chunk.logprobs for value in getattr(chunk.logprobs, field)]
        assert streamed == getattr(whole.logprobs, field)
    assert whole.logprobs.text_offset[-1] == len(whole.text) == len(PROMPT + STORY)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_prompt_logprobs_in_vllms_form(path: str) -> None:
    is_chat = "chat" in path
    body: dict[str, Any] = {"messages": USER} if is_chat else {"prompt": PROMPT}
    service = FakeService(STORY)
    answer = (await post(service, path, **body, max_tokens=3, prompt_logprobs=2, return_token_ids=True)).json()
    (request,) = service.requests
    assert (request.sampling.num_prompt_logprobs, request.sampling.num_logprobs) == (2, None)
    choice = answer["choices"][0]
    holder = answer if is_chat else choice
    assert holder["prompt_token_ids"] == list(request.prompt_ids)
    assert choice["token_ids"] == ids(STORY)[:3]
    assert choice["logprobs"] is None
    first, *entries = holder["prompt_logprobs"]
    assert first is None
    told = fake_logprobs(request.prompt_ids[1:], 2)
    for token_id, entry, expected in zip(request.prompt_ids[1:], entries, told, strict=True):
        assert entry[str(token_id)]["logprob"] == expected.logprob
        assert entry[str(token_id)]["rank"] == (1 if token_id % 2 == 0 else None)
        assert [entry[str(best)]["logprob"] for best in expected.top_ids] == list(expected.top_logprobs)
        assert entry[str(token_id)]["decoded_token"] == tokenizer().decode([token_id])


async def test_tokens_named_by_their_ids() -> None:
    named = {"return_tokens_as_token_ids": True, "max_tokens": 4}
    text = (await post(FakeService(STORY), "/v1/completions", prompt=PROMPT, logprobs=1, **named)).json()
    assert text["choices"][0]["logprobs"]["tokens"] == [f"token_id:{token_id}" for token_id in ids(STORY)[:4]]
    assert all(name.startswith("token_id:") for top in text["choices"][0]["logprobs"]["top_logprobs"] for name in top)
    chat = (await post(FakeService(STORY), "/v1/chat/completions", messages=USER, logprobs=True, **named)).json()
    content = chat["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == [f"token_id:{token_id}" for token_id in ids(STORY)[:4]]


async def test_minus_infinity_becomes_a_number() -> None:
    service = FakeService(STORY)
    real = service._bursts

    async def bursts(request: Any) -> Any:
        async for burst in real(request):
            for entry in burst.logprobs:
                object.__setattr__(burst, "logprobs", tuple(entry._replace(logprob=-math.inf) for _ in burst.logprobs))
            yield burst

    service._bursts = bursts  # type: ignore[method-assign]
    answer = (await post(service, "/v1/completions", prompt=PROMPT, logprobs=0, max_tokens=2)).json()
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [-9999.0, -9999.0]


async def test_bad_words_are_spelled_as_a_text_begins_and_goes_on_with_them() -> None:
    service = FakeService(STORY)
    response = await post(
        service,
        "/v1/completions",
        prompt=PROMPT,
        bad_words=["rabbit", "upon a time", "  fox"],
        allowed_token_ids=[5, 6],
    )
    assert response.status_code == 200
    sampling = service.requests[0].sampling
    assert sampling.allowed_token_ids == (5, 6)
    texts = [tokenizer().decode(list(word)) for word in sampling.bad_words]
    assert {text.strip() for text in texts} == {"rabbit", "upon a time", "fox"}
    assert " rabbit" in texts and "rabbit" in texts and "fox" in texts


CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        (CHAT, {"top_logprobs": 3}, "top_logprobs", "needs logprobs to be true"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "is 21; it must be between 0 and 20"),
        (CHAT, {"logprobs": 3}, "logprobs", "should be"),
        (CHAT, {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "whole answers only"),
        (TEXT, {"logprobs": 21}, "logprobs", "is 21; it must be between 0 and 20"),
        (TEXT, {"logprobs": -1}, "logprobs", "is -1"),
        (TEXT, {"logprobs": True}, "logprobs", "should be"),
        (TEXT, {"prompt_logprobs": -1}, "prompt_logprobs", "is -1; it must be between 0 and 20"),
        (TEXT, {"echo": "yes"}, "echo", "should be"),
        (TEXT, {"max_tokens": 0}, "max_tokens", "must be at least 1"),
        (TEXT, {"bad_words": ["a", " "]}, "bad_words", "bad_words[1]"),
        (TEXT, {"bad_words": ["x" * 1001]}, "bad_words", "1 to 1000 characters"),
        (TEXT, {"bad_words": ["x"] * 129}, "bad_words", "at most 128"),
        (TEXT, {"bad_words": ["many words " * 80]}, "bad_words", "spellings of 1 to 64"),
        (TEXT, {"bad_words": [3]}, "bad_words[0]", "should be"),
        (TEXT, {"allowed_token_ids": []}, "allowed_token_ids", "is empty"),
        (TEXT, {"allowed_token_ids": [4096]}, "allowed_token_ids", "between 0 and 4095"),
        (TEXT, {"allowed_token_ids": [-1]}, "allowed_token_ids", "between 0 and 4095"),
        (TEXT, {"allowed_token_ids": [1] * 4097}, "allowed_token_ids", "at most 4096"),
        ("/v1/responses", {"include": "message.output_text.logprobs"}, "include", "list"),
        ("/v1/responses", {"top_logprobs": 21}, "top_logprobs", "between 0 and 20"),
    ],
)
async def test_values_that_cannot_be_are_refused_by_name(
    path: str, body: dict[str, Any], param: str, message: str
) -> None:
    asked = {CHAT: {"messages": USER}, TEXT: {"prompt": PROMPT}, "/v1/responses": {"input": "Hello"}}[path]
    service = FakeService(STORY)
    response = await post(service, path, **asked, **body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert message in error["message"]
    assert service.requests == []
