"""Clients of the HTTP API that send too much, too slowly or nothing: refused, counted, and nobody else affected."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fakes import until
from http_support import FakeService, RunningApi
from keyed_api import ALICE, BOB, BODY, CHAT, bearer, connection, guarded, key_file_in

from edge_agent.http.server import MAX_HEAD_BYTES, BoundedProtocol

NUM_CLIENTS = 20
DEADLINE_S = 20.0
HEAD = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\n"
KEY = f"authorization: Bearer {BOB}\r\n"
JSON = "content-type: application/json\r\n"


@pytest.fixture
async def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningApi]:
    monkeypatch.setattr(BoundedProtocol, "head_timeout_s", 0.3)
    async with guarded(FakeService(), key_file_in(tmp_path), body_timeout_s=0.3, max_body_bytes=100_000) as api:
        yield api


@asynccontextmanager
async def neighbour(api: RunningApi) -> AsyncIterator[None]:
    """Another user's answers before, during and after the block, all the same."""
    answers: list[str] = []
    done = asyncio.Event()

    async def ask() -> None:
        async with httpx.AsyncClient(base_url=api.url, headers=bearer(ALICE), trust_env=False) as client:
            while not done.is_set():
                response = await client.post(CHAT, json={**BODY, "seed": 3})
                answers.append(response.raise_for_status().json()["choices"][0]["message"]["content"])

    asking = asyncio.create_task(ask())
    try:
        await until(lambda: answers or asking.done())
        yield
        so_far = len(answers)
        await until(lambda: len(answers) > so_far or asking.done())
    finally:
        done.set()
        await asking
    assert set(answers) == {"Once upon a time."}


async def status_of(api: RunningApi, parts: list[bytes], pause_s: float = 0.0) -> int:
    """Sends parts with pauses until the API answers, and returns its status; 0 for a connection that was cut."""
    async with connection(api) as (reader, writer):
        answer = asyncio.create_task(reader.readline())
        try:
            for part in parts:
                if answer.done():
                    break
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause_s)
            return int(((await answer).split() or [b"", b"0"])[1])
        except ConnectionError:
            return 0
        finally:
            answer.cancel()
            await asyncio.wait({answer})


def dribbled(text: str) -> list[bytes]:
    return [text.encode()[at : at + 1] for at in range(len(text))]


ATTACKS: dict[str, tuple[Callable[[], list[bytes]], int, str]] = {
    "head a byte at a time": (lambda: dribbled(HEAD + "a: b\r\n" * 100), 408, "other"),
    "one header too long": (lambda: [(HEAD + "a: " + "x" * 2 * MAX_HEAD_BYTES + "\r\n\r\n").encode()], 431, "other"),
    "headers without end": (lambda: [(HEAD + "a: b\r\n" * 6000).encode()], 431, "other"),
    "too many headers": (lambda: [(HEAD + "a: b\r\n" * 200 + "\r\n").encode()], 431, CHAT),
    "no request": (lambda: [b"\x16\x03\x01\x02\x00\x01\r\n\r\n"], 400, "other"),
    "no key": (lambda: [(HEAD + JSON + "content-length: 10000\r\n\r\n").encode()], 401, CHAT),
    "wrong key": (
        lambda: [(HEAD + "authorization: Bearer sk-x\r\n" + "content-length: 2\r\n\r\n{}").encode()],
        401,
        CHAT,
    ),
    "body a byte at a time": (
        lambda: [(HEAD + KEY + JSON + "content-length: 10000\r\n\r\n").encode(), *dribbled("{" + " " * 100)],
        408,
        CHAT,
    ),
    "chunks without end": (
        lambda: [(HEAD + KEY + JSON + "transfer-encoding: chunked\r\n\r\n").encode(), *[b"1\r\n \r\n"] * 100],
        408,
        CHAT,
    ),
    "body announced too large": (
        lambda: [(HEAD + KEY + JSON + "content-length: 1000000000\r\n\r\n").encode()],
        413,
        CHAT,
    ),
    "body too large in chunks": (
        lambda: [
            (HEAD + KEY + JSON + "transfer-encoding: chunked\r\n\r\n").encode(),
            b"7530\r\n" + b" " * 30_000 + b"\r\n",
            b"7530\r\n" + b" " * 30_000 + b"\r\n",
            b"c350\r\n" + b" " * 50_000 + b"\r\n",
        ],
        413,
        CHAT,
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_whoever_attacks_is_refused_and_counted_and_nobody_else_notices(api: RunningApi, attack: str) -> None:
    make, status, endpoint = ATTACKS[attack]
    async with neighbour(api), asyncio.timeout(DEADLINE_S):
        statuses = await asyncio.gather(*(status_of(api, make(), pause_s=0.01) for _ in range(NUM_CLIENTS)))
    assert statuses == [status] * NUM_CLIENTS
    counted = api.sample("specedge_edge_http_requests_total", endpoint=endpoint, status=str(status))
    assert counted == NUM_CLIENTS
    assert api.service.num_open == 0


async def test_silent_connections_are_cut_off(api: RunningApi) -> None:
    async with neighbour(api), asyncio.timeout(DEADLINE_S):
        assert await asyncio.gather(*(status_of(api, []) for _ in range(NUM_CLIENTS))) == [0] * NUM_CLIENTS
