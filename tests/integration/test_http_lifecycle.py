"""What surrounds answers: leaving clients, slow readers, limits, request ids, readiness, metrics."""

import asyncio
import json
import socket
from contextlib import suppress
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from fakes import until
from http_support import INFO, FakeService, RunningApi, ids, serving
from prometheus_client.parser import text_string_to_metric_families

from specedge.errors import VerifierUnavailable

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}


async def test_a_client_that_leaves_in_the_middle_of_a_stream_cancels_its_generation() -> None:
    service = FakeService("word ", is_endless=True, burst_size=1)
    async with (
        serving(service) as api,
        openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="x", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(**BODY, max_tokens=1000, stream=True, n=3)
        received = 0
        async for _ in stream:
            received += 1
            if received == 10:
                break
        assert service.num_open == 3
        await stream.close()
        await until(lambda: service.num_open == 0)
        num_bursts = service.num_bursts
        await asyncio.sleep(0.05)
        assert service.num_bursts == num_bursts, "nothing is generated for a client that left"
        await until(lambda: api.sample("specedge_edge_answers_total", finished_reason="abort") == 3)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_before_the_first_token_cancels_its_generation(stream: bool) -> None:
    service = FakeService()
    service.gate = asyncio.Event()
    async with serving(service) as api:
        async with httpx.AsyncClient(base_url=api.url) as client:
            request = asyncio.create_task(client.post(CHAT, json={**BODY, "stream": stream}))
            await until(lambda: service.num_open == 1)
            request.cancel()
            with suppress(asyncio.CancelledError):
                await request
        await until(lambda: service.num_open == 0)
        labels = {"endpoint": CHAT, "status": "499"}
        await until(lambda: api.sample("specedge_edge_http_requests_total", **labels) == 1)


async def test_a_client_that_leaves_while_it_waits_between_tokens_cancels_at_once() -> None:
    service = FakeService(is_endless=True)
    gate = service.gate = asyncio.Event()
    gate.set()
    async with serving(service) as api, httpx.AsyncClient(base_url=api.url) as client:
        async with client.stream("POST", CHAT, json={**BODY, "stream": True, "max_tokens": 1000}) as response:
            await anext(response.aiter_bytes())
            gate.clear()
            assert service.num_open == 1
        await until(lambda: service.num_open == 0)


async def test_one_clients_leaving_does_not_touch_its_neighbour() -> None:
    service = FakeService(lambda request: "word " * 400, burst_size=2)
    async with serving(service) as api, httpx.AsyncClient(base_url=api.url) as client:
        stays = asyncio.create_task(client.post(CHAT, json={**BODY, "max_tokens": 900}))
        async with client.stream("POST", CHAT, json={**BODY, "stream": True, "max_tokens": 900}) as response:
            await anext(response.aiter_bytes())
        answer = (await stays).json()
        assert answer["choices"][0]["message"]["content"] == "word " * 400


async def test_a_slow_reader_stops_its_own_generation_only() -> None:
    service = FakeService("rabbit ", is_endless=True, burst_size=1)
    service.info = replace(INFO, max_len=1_000_000)
    num_tokens = 30_000  # as many chunks fill every buffer between here and there several times
    async with serving(service) as api:
        reader, writer = await slow_stream(api, max_tokens=num_tokens)
        await until(lambda: service.num_bursts > 0)
        num_stalled = -1
        while num_stalled != service.num_bursts:
            num_stalled = service.num_bursts
            await asyncio.sleep(0.2)
        assert service.num_open == 1
        assert num_stalled < num_tokens - 1000, "nothing is generated for a reader that does not read"
        async with httpx.AsyncClient(base_url=api.url) as client:
            quick = await client.post(CHAT, json={**BODY, "max_tokens": 5})
            assert quick.json()["usage"]["completion_tokens"] == 5
        num_received, tail = 0, b""
        while not tail.endswith(b"0\r\n\r\n"):
            data = tail + await reader.read(2**20)
            num_received += data.count(b"finish_reason") - tail.count(b"finish_reason")
            tail = data[-100:]
        assert num_received == num_tokens + 1, "nothing is lost by waiting; one chunk told the role"
        writer.close()
        await writer.wait_closed()


async def slow_stream(api: RunningApi, **fields: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Sends a request for a stream over a connection with small buffers, and reads nothing."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, api.address)
    reader, writer = await asyncio.open_connection(sock=plain, limit=4096)
    request = httpx.Request("POST", f"{api.url}{CHAT}", json={**BODY, "stream": True, **fields})
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    writer.write(f"POST {CHAT} HTTP/1.1\r\n{head}\r\n".encode() + request.content)
    await writer.drain()
    return reader, writer


async def test_prompts_beyond_the_parallel_limit_wait_their_turn() -> None:
    service = FakeService("a b c d", burst_size=1)
    async with serving(service, max_parallel_choices=4) as api, httpx.AsyncClient(base_url=api.url) as client:
        prompts = [f"prompt {index}" for index in range(20)]
        answer = await client.post("/v1/completions", json={"model": "demo", "prompt": prompts, "max_tokens": 20})
    assert [choice["text"] for choice in answer.json()["choices"]] == ["a b c d"] * 20
    assert service.max_open == 4


async def test_requests_beyond_the_limit_are_told_to_come_back() -> None:
    service = FakeService()
    service.gate = asyncio.Event()
    async with serving(service, max_concurrent_requests=2) as api, httpx.AsyncClient(base_url=api.url) as client:
        running = [asyncio.create_task(client.post(CHAT, json=BODY)) for _ in range(2)]
        await until(lambda: service.num_open == 2)
        refused = await client.post(CHAT, json=BODY)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert "2 requests" in refused.json()["error"]["message"]
        assert (await client.get("/health")).status_code == 200, "health is not generation"
        service.gate.set()
        assert [response.status_code for response in await asyncio.gather(*running)] == [200, 200]
        assert (await client.post(CHAT, json=BODY)).status_code == 200


async def test_tokenising_a_long_prompt_does_not_hold_up_others() -> None:
    service = FakeService()
    service.info = (
        None
        if service.info is None
        else service.info.__class__(
            **{name: getattr(service.info, name) for name in service.info.__slots__} | {"max_len": 131_072}
        )
    )
    async with serving(service) as api, httpx.AsyncClient(base_url=api.url, timeout=60) as client:
        text = "The rabbit named 17 ran home. " * 12_000
        long = asyncio.create_task(client.post("/v1/completions", json={"model": "demo", "prompt": text}))
        num_answered = 0
        while not long.done():
            assert (await client.get("/health")).status_code == 200
            num_answered += 1
        assert long.result().status_code == 200
        assert len(service.requests[0].prompt_ids) > 80_000
    assert num_answered > 10, "a blocked event loop answers one or two"


@pytest.mark.parametrize(
    ("given", "is_echoed"),
    [("trace-123", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("", False), (None, False)],
)
async def test_request_ids(given: str | None, is_echoed: bool) -> None:
    headers = {} if given is None else {"x-request-id": given}
    async with serving(FakeService()) as api, httpx.AsyncClient(base_url=api.url, headers=headers) as client:
        answers = [
            await client.post(CHAT, json=BODY),
            await client.post(CHAT, json={**BODY, "stream": True}),
            await client.post(CHAT, json={}),
            await client.get("/nothing"),
        ]
    shown = [answer.headers["x-request-id"] for answer in answers]
    assert all(shown)
    assert (shown == [given] * 4) == is_echoed
    if not is_echoed:
        assert len(set(shown)) == 4


async def test_health_readiness_and_version() -> None:
    service = FakeService()
    async with serving(service) as api, httpx.AsyncClient(base_url=api.url) as client:
        assert (await client.get("/ready")).json() == {"status": "ready"}
        service.is_ready = False
        away = await client.get("/ready")
        assert (away.status_code, away.json()["reason"]) == (503, "the verifier does not answer")
        assert away.headers["retry-after"] == "1"
        assert (await client.get("/health")).status_code == 200, "the process lives without its verifier"
        assert (await client.post(CHAT, json=BODY)).status_code == 200, "answers wait for the verifier themselves"
        version = (await client.get("/version")).json()
    assert (version["verifier_version"], version["target_model"]) == ("9.9", "demo-target")


async def test_what_can_be_read_has_a_head() -> None:
    async with serving(FakeService()) as api, httpx.AsyncClient(base_url=api.url) as client:
        for path in ("/", "/health", "/ready", "/version", "/metrics", "/v1/models", "/v1/models/demo", "/docs"):
            head, whole = await client.head(path), await client.get(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-type"] == whole.headers["content-type"]
        assert (await client.head("/v1/chat/completions")).status_code == 405
        assert (await client.get("/v1/models/")).json() == (await client.get("/v1/models")).json()


async def test_metrics_count_what_happened() -> None:
    service = FakeService("Once upon a time there was a rabbit", burst_size=2)
    num_tokens = len(ids("Once upon a time there was a rabbit")) + 1
    async with serving(service) as api, httpx.AsyncClient(base_url=api.url) as client:
        await client.post(CHAT, json=BODY)
        await client.post(CHAT, json={**BODY, "stream": True, "max_tokens": 2})
        await client.post(CHAT, json={**BODY, "temperature": 5})
        await client.get("/no/such/path/17")
        response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    name = "specedge_edge_http_requests_total"
    assert samples[(name, ("endpoint", CHAT), ("status", "200"))] == 2
    assert samples[(name, ("endpoint", CHAT), ("status", "400"))] == 1
    assert samples[(name, ("endpoint", "other"), ("status", "404"))] == 1
    assert samples[("specedge_edge_generated_tokens_total",)] == num_tokens + 2
    assert samples[("specedge_edge_answers_total", ("finished_reason", "stop"))] == 1
    assert samples[("specedge_edge_answers_total", ("finished_reason", "length"))] == 1
    assert samples[("specedge_edge_time_to_first_token_seconds_count",)] == 2
    num_bursts = -(-num_tokens // 2)
    assert samples[("specedge_edge_inter_burst_seconds_count",)] == num_bursts - 1
    assert samples[("specedge_edge_inter_token_seconds_count",)] == num_tokens - 2
    assert samples[("specedge_edge_requests_running",)] == samples[("specedge_edge_requests_waiting",)] == 0
    vllm = (("engine", "0"), ("model_name", "demo"))
    assert samples[("vllm:generation_tokens_total", *vllm)] == num_tokens + 2
    assert samples[("vllm:time_to_first_token_seconds_count", *vllm)] == 2
    assert samples[("vllm:spec_decode_num_drafts_total", *vllm)] == 0


async def test_a_silent_stream_is_kept_alive_and_still_tells_its_error() -> None:
    service = FakeService()
    service.gate = asyncio.Event()
    service.error_after = (0, VerifierUnavailable("gone"))
    async with (
        serving(service, keep_alive_s=0.02) as api,
        httpx.AsyncClient(base_url=api.url) as client,
        client.stream("POST", CHAT, json={**BODY, "stream": True}) as response,
    ):
        assert response.status_code == 200
        text = ""
        async for chunk in response.aiter_text():
            text += chunk
            if text.count(": keep-alive\n\n") >= 2:
                service.gate.set()
    *comments, error, done, rest = text.split("\n\n")
    assert set(comments) == {": keep-alive"}
    assert json.loads(error.removeprefix("data: "))["error"]["message"] == "gone"
    assert (done, rest) == ("data: [DONE]", "")
