"""Heads of requests that are too large, too slow or no requests at all, over raw sockets."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import until
from http_support import FakeService, RunningApi, serving
from keyed_api import ALICE, BODY, CHAT, bearer, connection, guarded, key_file_in

from edge_agent.http.server import MAX_HEAD_BYTES, BoundedProtocol


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return key_file_in(tmp_path)


# Heads of requests


async def refusal_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
    """Status and error of an answer after which the connection is closed."""
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower() and b"x-request-id: " in head.lower()
    return int(head.split()[1]), json.loads(body)["error"]


@asynccontextmanager
async def others_unaffected(api: RunningApi) -> AsyncIterator[None]:
    """Checks that other clients are served as ever, before, while and after."""
    num_served, done = 0, asyncio.Event()

    async def serve() -> None:
        nonlocal num_served
        async with httpx.AsyncClient(base_url=api.url) as client:
            while not done.is_set():
                assert (await client.post(CHAT, json=BODY)).status_code == 200
                num_served += 1

    task = asyncio.create_task(serve())
    try:
        await until(lambda: num_served > 0 or task.done())
        yield
        so_far = num_served
        await until(lambda: num_served > so_far or task.done())
    finally:
        done.set()
        await task


@pytest.mark.parametrize("size", [MAX_HEAD_BYTES + 16_384, 100_000, 5_000_000])
@pytest.mark.parametrize("form", ["one header", "many headers", "path", "no end of line"])
async def test_large_heads_are_refused(size: int, form: str) -> None:
    start = "GET /health HTTP/1.1\r\nhost: x\r\n"
    filling = {
        "one header": start + "a: " + "x" * size + "\r\n\r\n",
        "many headers": start + "a: x\r\n" * (size // 6) + "\r\n",
        "path": f"GET /{'x' * size} HTTP/1.1\r\nhost: x\r\n\r\n",
        "no end of line": start + "x" * size,
    }[form].encode()
    async with serving(FakeService()) as api, others_unaffected(api), connection(api) as (reader, writer):
        writer.write(filling)
        try:
            status, error = await refusal_of(reader)
        except ConnectionResetError:
            assert size > 1_000_000, "what does not fit into the buffers may be cut off while it is sent"
            return
        assert (status, error["type"]) == (431, "invalid_request_error")
        assert str(MAX_HEAD_BYTES) in error["message"]


async def test_a_head_within_the_bounds_is_taken(keys_file: Path) -> None:
    headers = {f"x-{number}": "x" * 200 for number in range(100)} | {"x-long": "y" * 8000}
    async with guarded(FakeService(), keys_file) as api, httpx.AsyncClient(base_url=api.url) as client:
        assert (await client.post(CHAT, json=BODY, headers={**headers, **bearer(ALICE)})).status_code == 200


async def test_too_many_headers_are_refused() -> None:
    headers = {f"x-{number}": "" for number in range(200)}
    async with serving(FakeService()) as api, httpx.AsyncClient(base_url=api.url) as client:
        refused = await client.get("/health", headers=headers)
        assert refused.status_code == 431
        assert "at most 128" in refused.json()["error"]["message"]
        assert (await client.get("/health")).status_code == 200, "on the same connection"


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
async def test_what_is_no_request_gets_400(data: bytes) -> None:
    async with serving(FakeService()) as api, others_unaffected(api), connection(api) as (reader, writer):
        writer.write(data)
        assert (await refusal_of(reader))[0] == 400


@pytest.mark.parametrize("head", ["CONNECT x:80", "GET http://x", "GET /\u00e9", "GET / HTTP/2.0\r\na: b", "FOO /"])
async def test_what_this_is_no_server_for_gets_400(head: str) -> None:
    line = head if "HTTP/" in head else f"{head} HTTP/1.1"
    async with serving(FakeService()) as api, connection(api) as (reader, writer):
        writer.write(f"{line}\r\nhost: x\r\n\r\n".encode("latin-1"))
        assert (await refusal_of(reader))[0] == 400


def chat_request(headers: str = "") -> bytes:
    """A chat over the wire, with further lines in its head."""
    body = json.dumps(BODY).encode()
    return f"POST {CHAT} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {len(body)}\r\n\r\n".encode() + body


async def answers_of(reader: asyncio.StreamReader, number: int) -> list[bytes]:
    """So many answers with a body, one after the other on one connection."""
    answers = []
    for _ in range(number):
        head = await reader.readuntil(b"\r\n\r\n")
        size = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        answers.append(head + await reader.readexactly(size))
    return answers


@pytest.mark.parametrize("slice_bytes", [1, 7, 100_000])
@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
async def test_a_wish_for_another_protocol_is_ignored(slice_bytes: int, protocol: str) -> None:
    wish = f"connection: Upgrade, HTTP2-Settings\r\nupgrade: {protocol}\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
    chat = chat_request(wish)
    async with serving(FakeService()) as api, connection(api) as (reader, writer):
        for _ in range(3):
            for start in range(0, len(chat), slice_bytes):
                writer.write(chat[start : start + slice_bytes])
                await asyncio.sleep(0)
            [answer] = await answers_of(reader, 1)
            assert answer.startswith(b"HTTP/1.1 200 ") and b"Once upon a time" in answer


async def test_what_comes_before_the_answer_is_not_read_and_what_comes_with_the_next_head_is() -> None:
    service = FakeService()
    service.gate = asyncio.Event()
    chat = chat_request()
    async with serving(service) as api, connection(api) as (reader, writer):
        writer.write(chat + chat[:40])  # a head that is not whole is nothing yet
        await until(lambda: service.num_open == 1)
        service.gate.set()
        assert (await answers_of(reader, 1))[0].startswith(b"HTTP/1.1 200 ")
        service.gate.clear()
        writer.write(chat[40:] + chat)
        await until(lambda: service.num_open == 1)
        service.gate.set()
        assert (await answers_of(reader, 1))[0].startswith(b"HTTP/1.1 200 ")
        assert await reader.read() == b"", "the second one came early: closed"


async def test_a_client_that_leaves_ends_its_answer_whatever_it_sent_early() -> None:
    service = FakeService()
    service.gate = asyncio.Event()
    chat = chat_request()
    async with serving(service) as api:
        async with connection(api) as (_, writer):
            writer.write(3 * chat)
            await until(lambda: service.num_open == 1)
        await until(lambda: service.num_open == 0)


@pytest.mark.parametrize("size", [MAX_HEAD_BYTES + 1, 1_000_000])
async def test_what_follows_a_body_is_bounded_and_taken_for_nothing(size: int) -> None:
    body = json.dumps(BODY).encode()
    start = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{len(body):x}\r\n".encode()
    start += body + b"\r\n0\r\n"
    async with serving(FakeService()) as api:
        async with connection(api) as (reader, writer):
            writer.write(start + b"authorization: Bearer x\r\n\r\n")
            assert (await answers_of(reader, 1))[0].startswith(b"HTTP/1.1 200 ")
        async with connection(api) as (reader, writer):
            writer.write(start)
            await writer.drain()
            with pytest.raises(ConnectionError):
                for _ in range(1000):
                    writer.write(b"a" * size)
                    await writer.drain()
                    await asyncio.sleep(0.01)


async def test_slow_heads_and_silent_connections_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedProtocol, "head_timeout_s", 0.3)

    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\n".encode())
        while not writer.is_closing():
            writer.write(b"a: b\r\n")
            await asyncio.sleep(0.02)

    async def outcome(sends: Callable[[asyncio.StreamWriter], Awaitable[None]] | None) -> int:
        async with connection(api) as (reader, writer):
            sending = asyncio.create_task(sends(writer)) if sends else None
            try:
                async with asyncio.timeout(20):
                    return int(((await reader.read(13)).split() or [b"0", b"0"])[1])
            except ConnectionError:
                return 0
            finally:
                if sending:
                    sending.cancel()

    async with serving(FakeService()) as api, others_unaffected(api):
        started_s = time.monotonic()
        outcomes = await asyncio.gather(*(outcome(drip) for _ in range(40)), *(outcome(None) for _ in range(40)))
        assert outcomes == [408] * 40 + [0] * 40
        assert time.monotonic() - started_s >= 0.3


async def test_the_time_for_a_head_begins_anew_with_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedProtocol, "head_timeout_s", 0.2)
    service = FakeService()
    service.gate = asyncio.Event()
    request = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    chat = chat_request()
    async with serving(service) as api, connection(api) as (reader, writer):
        for _ in range(5):
            writer.write(request[:20])
            await asyncio.sleep(0.05)
            writer.write(request[20:])
            assert (await reader.readuntil(b'{"status":"ok"}')).startswith(b"HTTP/1.1 200 ")
        writer.write(chat)
        await asyncio.sleep(0.5)
        service.gate.set()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 "), "an answer may take longer than a head"
        await reader.readuntil(b"\r\n\r\n")
        await until(lambda: service.num_open == 0)
        writer.write(request[:20])
        rest = await reader.read()
        assert b"HTTP/1.1 408 " in rest


async def test_the_rest_of_a_refused_body_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch, keys_file: Path
) -> None:
    monkeypatch.setattr(BoundedProtocol, "head_timeout_s", 0.2)
    async with guarded(FakeService(), keys_file) as api, connection(api) as (reader, writer):
        writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 8000000\r\n\r\n".encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
        with pytest.raises(ConnectionError):
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)
