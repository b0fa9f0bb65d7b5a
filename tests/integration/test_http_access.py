"""API keys, their limits and their use, and CORS, over real sockets."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from fakes import until
from http_support import FakeService, serving, tokenizer
from keyed_api import (
    ALICE,
    BOB,
    BODY,
    CHAT,
    NUM_STORY_TOKENS,
    PAGE,
    STORY,
    USER,
    bearer,
    clients_of,
    connection,
    guarded,
    key_file_in,
    put,
)

from edge_agent.app import compose, run
from edge_agent.http.api_keys import spell_entry
from edge_agent.http.speculation import SpeculationSummary
from edge_agent.loading import LoadedModels
from edge_agent.metrics import EdgeMetrics
from edge_agent.settings import EdgeSettings
from specedge.errors import SettingsError


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return key_file_in(tmp_path)


# Who


async def test_a_key_opens_the_api_for_both_clients(keys_file: Path) -> None:
    async with guarded(FakeService(STORY), keys_file) as api, clients_of(api, ALICE) as (open_ai, claude, plain):
        chat = await open_ai.chat.completions.create(**BODY)
        assert chat.choices[0].message.content == STORY
        message = await claude.messages.create(model="demo", max_tokens=50, messages=USER)
        assert message.content[0].type == "text" and message.content[0].text == STORY
        assert [model.id async for model in open_ai.models.list()] == ["demo"]
        tokens = await plain.post("/tokenize", json={"model": "demo", "prompt": "hi"})
        assert tokens.status_code == 200
        assert "x-ratelimit-limit-requests" not in tokens.headers, "alice has no limit to tell about"


async def test_a_wrong_key_gets_401_in_the_shape_of_its_client(keys_file: Path) -> None:
    async with guarded(service := FakeService(), keys_file) as api, clients_of(api, "wrong") as (open_ai, claude, _):
        with pytest.raises(openai.AuthenticationError) as refused:
            await open_ai.chat.completions.create(**BODY)
        assert refused.value.code == "invalid_api_key"
        assert refused.value.type == "invalid_request_error"
        assert refused.value.response.headers["www-authenticate"] == "Bearer"
        assert refused.value.response.headers["x-request-id"]
        assert "wrong" not in refused.value.response.text, "a key is not shown"
        with pytest.raises(openai.AuthenticationError):
            await open_ai.responses.create(model="demo", input="hi", stream=True)
        with pytest.raises(anthropic.AuthenticationError) as refused_by_message:
            await claude.messages.create(model="demo", max_tokens=5, messages=USER)
        body: Any = refused_by_message.value.body
        assert body["error"]["type"] == "authentication_error"
        assert api.sample("specedge_edge_refused_requests_total", key="", reason="unknown_key") == 3
    assert service.requests == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 401),
        ([("authorization", f"Bearer {ALICE}")], 200),
        ([("authorization", f"bEARER   {ALICE}")], 200),
        ([("x-api-key", ALICE)], 200),
        ([("authorization", "Bearer unused"), ("x-api-key", ALICE)], 200),
        ([("authorization", f"Bearer {BOB}"), ("x-api-key", "unused")], 200),
        ([("authorization", ALICE)], 401),
        ([("authorization", f"Basic {ALICE}")], 401),
        ([("authorization", "Bearer")], 401),
        ([("authorization", b"Bearer \xff\xfe")], 401),
        ([("x-api-key", "")], 401),
        ([("x-api-key", "wrong"), ("x-api-key", ALICE)], 401),
        ([("x-api-key", f"{ALICE}, {BOB}")], 401),
        ([("cookie", f"authorization=Bearer {ALICE}")], 401),
    ],
)
async def test_where_a_key_may_stand(headers: list[Any], status: int, keys_file: Path) -> None:
    async with guarded(FakeService(), keys_file) as api, httpx.AsyncClient(base_url=api.url) as client:
        assert (await client.post(CHAT, json=BODY, headers=headers)).status_code == status
        assert (await client.get("/v1/models", headers=headers)).status_code == status


async def test_only_what_tells_nothing_is_open(keys_file: Path) -> None:
    async with guarded(FakeService(), keys_file) as api, httpx.AsyncClient(base_url=api.url) as client:
        for path in ("/health", "/ready", "/metrics", "/version", "/docs", "/openapi.json"):
            assert (await client.get(path)).status_code == 200, path
        assert (await client.get("/")).status_code != 401
        assert (await client.post("/")).status_code == 401
        closed = ["/v1/models", "/v1/models/demo", "/health/", "/v1/../health/x", "/nothing", "/redoc"]
        for path in [*closed, "//health", "/./health", "/health/../v1/models", "/HEALTH", "/%2fhealth"]:
            async with connection(api) as (reader, writer):
                writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
                assert (await reader.readline()).startswith(b"HTTP/1.1 401 "), path
        for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "POST"):
            assert (await client.request(method, CHAT)).status_code == 401, method


async def test_the_refusal_comes_before_the_body(keys_file: Path) -> None:
    async with guarded(FakeService(), keys_file) as api:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 8000000\r\nexpect: 100-continue\r\n\r\n"
        async with connection(api) as (reader, writer):
            writer.write(head.encode())
            assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")


async def test_without_a_file_no_key_is_needed_and_none_is_counted() -> None:
    async with serving(FakeService()) as api, clients_of(api, "anything") as (open_ai, _, plain):
        await open_ai.chat.completions.create(**BODY)
        text = (await plain.get("/metrics")).text
    assert "specedge_edge_key_requests_total{" not in text


async def test_keys_change_without_a_restart(keys_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = FakeService(STORY)
    service.gate = asyncio.Event()
    async with guarded(service, keys_file) as api, clients_of(api, ALICE) as (alice, _, _):
        running = asyncio.create_task(alice.chat.completions.create(**BODY))
        await until(lambda: service.num_open == 1)
        put(keys_file, spell_entry("bob", BOB))
        with pytest.raises(openai.AuthenticationError):
            await alice.chat.completions.create(**BODY)
        service.gate.set()
        assert (await running).choices[0].message.content == STORY, "what runs already is finished"
        async with clients_of(api, "sk-specedge-new") as (new, _, _), clients_of(api, BOB) as (bob, _, _):
            with pytest.raises(openai.AuthenticationError):
                await new.chat.completions.create(**BODY)
            put(keys_file, spell_entry("bob", BOB) + spell_entry("new", "sk-specedge-new"))
            await new.chat.completions.create(**BODY)
            put(keys_file, "- name: [")
            await new.chat.completions.create(**BODY)
            await bob.chat.completions.create(**BODY)
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1 and "the API keys stay as they were" in errors[0]
    assert ALICE not in caplog.text and BOB not in caplog.text


async def test_the_process_s_settings_reach_the_api(keys_file: Path) -> None:
    settings = EdgeSettings(api_keys_file=keys_file, cors_origins=(PAGE,))
    service: Any = FakeService()
    app = compose(settings, LoadedModels(tokenizer(), None), service, EdgeMetrics())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://edge") as client:
        refused = await client.get("/v1/models", headers={"origin": PAGE})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)
        assert (await client.get("/v1/models", headers=bearer(ALICE))).status_code == 200


def test_the_process_does_not_start_with_a_wrong_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.yaml \(API keys\) cannot be read: No such file"):
        run(EdgeSettings(api_keys_file=tmp_path / "none.yaml"), make_runner=loads_no_model)


def loads_no_model(*_: Any) -> Any:
    raise AssertionError("the file comes first")


# How much


async def test_requests_per_minute(keys_file: Path) -> None:
    put(keys_file, spell_entry("alice", ALICE, requests_per_minute=3) + spell_entry("bob", BOB))
    async with guarded(FakeService(), keys_file) as api, clients_of(api, ALICE) as (alice, claude, plain):
        for remaining in (2, 1, 0):
            answer = await alice.chat.completions.with_raw_response.create(**BODY)
            assert answer.headers["x-ratelimit-limit-requests"] == "3"
            assert answer.headers["x-ratelimit-remaining-requests"] == str(remaining)
            assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
            assert (await plain.get("/v1/models")).status_code == 200, "reading costs nothing"
        with pytest.raises(openai.RateLimitError) as refused:
            await alice.chat.completions.create(**BODY)
        assert (refused.value.type, refused.value.code) == ("rate_limit_error", "rate_limit_exceeded")
        assert "3 requests per minute" in refused.value.message
        headers = refused.value.response.headers
        assert 1 <= int(headers["retry-after"]) <= 20
        assert headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(anthropic.RateLimitError) as refused_by_message:
            await claude.messages.create(model="demo", max_tokens=5, messages=USER)
        body: Any = refused_by_message.value.body
        assert body["error"]["type"] == "rate_limit_error"
        async with clients_of(api, BOB) as (bob, _, _):
            for _ in range(5):
                await bob.chat.completions.create(**BODY)
        assert api.sample("specedge_edge_refused_requests_total", key="alice", reason="rate") == 2
        put(keys_file, spell_entry("alice", ALICE, requests_per_minute=60_000) + spell_entry("bob", BOB))
        assert (await answered(lambda: plain.post(CHAT, json=BODY))).status_code == 200


async def test_a_client_that_waits_as_told_is_let_through(keys_file: Path) -> None:
    put(keys_file, spell_entry("alice", ALICE, requests_per_minute=120))
    async with (
        guarded(FakeService(), keys_file) as api,
        openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key=ALICE, max_retries=3) as client,
    ):
        answers = [await client.completions.create(model="demo", prompt="a", max_tokens=1) for _ in range(120)]
        answers.append(await client.completions.create(model="demo", prompt="a", max_tokens=1))
    assert len(answers) == 121


@pytest.mark.parametrize("stream", [False, True])
async def test_one_request_after_another_is_one_at_a_time(stream: bool, keys_file: Path) -> None:
    put(keys_file, spell_entry("alice", ALICE, max_concurrent=1))
    async with guarded(FakeService(), keys_file) as api, clients_of(api, ALICE) as (_, _, plain):
        for _ in range(100):
            answer = await plain.post(CHAT, json={**BODY, "stream": stream, "max_tokens": 1})
            assert answer.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_requests_at_a_time(stream: bool, keys_file: Path) -> None:
    put(keys_file, spell_entry("alice", ALICE, max_concurrent=2) + spell_entry("bob", BOB))
    service = FakeService()
    service.gate = asyncio.Event()
    body = {**BODY, "stream": stream}
    async with guarded(service, keys_file) as api, clients_of(api, ALICE) as (alice, _, plain):
        running = [asyncio.create_task(plain.post(CHAT, json=body)) for _ in range(2)]
        await until(lambda: service.num_open == 2)
        with pytest.raises(openai.RateLimitError, match="2 requests with this API key") as refused:
            await alice.chat.completions.create(**BODY)
        assert refused.value.response.headers["retry-after"] == "1"
        bobs = asyncio.create_task(plain.post(CHAT, json=body, headers=bearer(BOB)))
        await until(lambda: service.num_open == 3)
        running[0].cancel()
        await until(lambda: service.num_open == 2)
        again = asyncio.create_task(answered(lambda: plain.post(CHAT, json=body)))
        await until(lambda: service.num_open == 3)
        service.gate.set()
        answers = await asyncio.gather(running[1], bobs, again)
        assert [answer.status_code for answer in answers] == [200] * 3
        for _ in range(3):
            await alice.chat.completions.create(**BODY)
        await plain.post(CHAT, json={"model": "unknown"})
        await plain.post(CHAT, content=b"{")
        assert api.sample("specedge_edge_refused_requests_total", key="alice", reason="concurrency") >= 1
        await alice.chat.completions.create(**BODY)


async def answered(ask: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """The first answer that is no refusal by a limit: a request that was cut off ends some moments later."""
    for _ in range(1000):
        answer = await ask()
        if answer.status_code != 429:
            break
        await asyncio.sleep(0.005)
    return answer


async def test_the_edge_s_own_limit_stays(keys_file: Path) -> None:
    service = FakeService()
    service.gate = asyncio.Event()
    async with guarded(service, keys_file, max_concurrent_requests=1) as api, clients_of(api, ALICE) as (_, _, plain):
        running = asyncio.create_task(plain.post(CHAT, json=BODY))
        await until(lambda: service.num_open == 1)
        assert (await plain.post(CHAT, json=BODY, headers=bearer(BOB))).status_code == 503
        service.gate.set()
        assert (await running).status_code == 200


# What was used


async def test_use_is_counted_by_key_as_the_answers_tell_it(keys_file: Path) -> None:
    async with guarded(FakeService(STORY), keys_file) as api, clients_of(api, ALICE) as (alice, claude, plain):
        usages = [(await alice.chat.completions.create(**BODY, n=3)).usage]
        stream = await alice.chat.completions.create(**BODY, stream=True, stream_options={"include_usage": True})
        usages += [chunk.usage async for chunk in stream if chunk.usage]
        usages.append((await alice.completions.create(model="demo", prompt=["a", "b c"], max_tokens=2)).usage)
        message = await claude.messages.create(model="demo", max_tokens=50, messages=USER)
        await plain.post(CHAT, json={"model": "unknown"})
        async with clients_of(api, BOB) as (bob, _, _):
            bobs = (await bob.chat.completions.create(**BODY)).usage
        assert bobs is not None and all(usages) and len(usages) == 3
        num_prompt = sum(usage.prompt_tokens for usage in usages if usage) + message.usage.input_tokens
        num_generated = sum(usage.completion_tokens for usage in usages if usage) + message.usage.output_tokens
        assert num_generated == 5 * NUM_STORY_TOKENS + 4
        name = "specedge_edge_key_"
        assert api.sample(f"{name}generated_tokens_total", key="alice") == num_generated
        assert api.sample(f"{name}prompt_tokens_total", key="alice") == num_prompt
        assert api.sample(f"{name}requests_total", key="alice") == 5
        assert api.sample(f"{name}generated_tokens_total", key="bob") == bobs.completion_tokens
        assert api.sample(f"{name}prompt_tokens_total", key="bob") == bobs.prompt_tokens
        text = (await plain.get("/metrics")).text
        assert 'specedge_edge_key_requests_total{key="alice"} 5.0' in text


async def test_an_answer_that_was_left_is_counted_as_far_as_it_got(keys_file: Path) -> None:
    service = FakeService("word ", is_endless=True, burst_size=1)
    async with guarded(service, keys_file) as api, clients_of(api, ALICE) as (alice, _, _):
        stream = await alice.chat.completions.create(**BODY, stream=True, max_tokens=1000)
        num_read = 0
        async for chunk in stream:
            num_read += bool(chunk.choices and chunk.choices[0].delta.content)
            if num_read == 10:
                break
        await stream.close()
        await until(lambda: service.num_open == 0)
        await until(lambda: api.sample("specedge_edge_key_generated_tokens_total", key="alice") >= 10)
        assert api.sample("specedge_edge_key_generated_tokens_total", key="alice") <= service.num_bursts


# Web pages

PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}


@pytest.mark.parametrize(("origins", "shown"), [((PAGE,), PAGE), (("*",), "*")])
async def test_pages_of_allowed_origins_may_ask(origins: tuple[str, ...], shown: str, keys_file: Path) -> None:
    async with (
        guarded(FakeService(), keys_file, cors_origins=origins) as api,
        httpx.AsyncClient(base_url=api.url, headers={"origin": PAGE}) as client,
    ):
        preflight = await client.options(CHAT, headers=PREFLIGHT)
        assert preflight.status_code == 200, "a preflight has no key"
        assert preflight.headers["access-control-allow-origin"] == shown
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        assert "POST" in preflight.headers["access-control-allow-methods"]
        for headers, status in ((bearer(ALICE), 200), (bearer("wrong"), 401), ({}, 401)):
            answer = await client.post(CHAT, json={**BODY, "stream": True}, headers=headers)
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == shown, "a page can read the refusal"
            exposed = answer.headers["access-control-expose-headers"].split(", ")
            own = [name for name in answer.headers if name.startswith("x-") and name != "x-accel-buffering"]
            own += ["retry-after", "x-ratelimit-remaining-requests", *SpeculationSummary().as_headers()]
            assert set(own) <= set(exposed)
            assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("origins", [(), ("https://other.example",)])
async def test_pages_of_other_origins_are_told_nothing(origins: tuple[str, ...]) -> None:
    async with (
        serving(FakeService(), cors_origins=origins) as api,
        httpx.AsyncClient(base_url=api.url, headers={"origin": PAGE}) as client,
    ):
        preflight = await client.options(CHAT, headers=PREFLIGHT)
        answer = await client.post(CHAT, json=BODY)
        assert preflight.status_code >= 400
        assert "access-control-allow-origin" not in [*preflight.headers, *answer.headers]


async def test_a_page_cannot_ask_without_asking_whether_it_may() -> None:
    service = FakeService()
    async with serving(service) as api, httpx.AsyncClient(base_url=api.url) as client:
        for headers in ({"origin": PAGE}, {"origin": PAGE, "content-type": "text/plain"}, {"origin": "null"}):
            refused = await client.post(CHAT, content=json.dumps(BODY), headers=headers)
            assert refused.status_code == 415, "a browser sends such a request to any server at once"
        assert service.requests == []
        assert (await client.post(CHAT, content=json.dumps(BODY))).status_code == 200
