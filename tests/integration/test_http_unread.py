"""Requests refused unread while the verifiers are known to refuse everything, and those that must be read."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from http_support import FakeService, serving
from journal_support import write_key
from keyed_api import connection, key_file_in

from edge_agent.http.answer_names import CONVERSATION_HEADER, KEY_HEADER
from edge_agent.http.unread import MAX_SCANNED_BYTES
from edge_agent.journal.journal import Journal
from specedge.errors import CapacityExceeded

CHAT, COMPLETIONS, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
UNREAD = "specedge_edge_requests_refused_unread_total"
USER = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": USER},
    COMPLETIONS: {"prompt": "hi"},
    MESSAGES: {"messages": USER, "max_tokens": 9, "model": "demo"},
    RESPONSES: {"input": "hi"},
}


def full() -> FakeService:
    """Refuses unread; whoever is read all the same gets an answer."""
    service = FakeService("Hello.")
    service.refusal = CapacityExceeded("264 sessions are running or waiting, the limit is 264", 2.2)
    return service


@pytest.mark.parametrize("path", BODIES)
async def test_a_request_is_refused_as_it_would_be_by_the_verifier(path: str) -> None:
    service = full()
    async with serving(service) as api, httpx.AsyncClient(base_url=api.url) as client:
        unread = await client.post(path, json=BODIES[path], headers={"x-request-id": "mine"})
        service.refusal, service.open_error = None, service.refusal
        read = await client.post(path, json=BODIES[path], headers={"x-request-id": "mine"})
        assert unread.status_code == read.status_code == 503
        assert unread.json() == read.json()
        same = ("retry-after", "x-request-id", "x-specedge-version", "content-type")
        assert [unread.headers.get(name) for name in same] == [read.headers.get(name) for name in same]
        assert unread.headers["retry-after"] == "3" and unread.headers["x-request-id"] == "mine"
        assert len(service.requests) == 1
        assert api.sample(UNREAD) == 1
        assert api.sample("specedge_edge_http_requests_total", endpoint=path, status="503") == 2


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "hi", "priority": -1}',
        b'{"prompt": "hi", "\\u0070riority": -1}',
        b'{"prompt": "hi", "pr\\u0069\\u006Frit\\u0079": -1}',
    ],
)
async def test_a_priority_has_to_be_read_however_it_is_spelled(body: bytes) -> None:
    service = full()
    async with serving(service) as api, httpx.AsyncClient(base_url=api.url) as client:
        response = await client.post(COMPLETIONS, content=body, headers={"content-type": "application/json"})
        assert response.status_code == 200, "its body reached the app whole"
        assert service.requests[0].priority == 1
        assert api.sample(UNREAD) == 0


@pytest.mark.parametrize("header", [KEY_HEADER, CONVERSATION_HEADER])
async def test_an_answer_that_may_be_recorded_is_looked_for(tmp_path: Path, header: str) -> None:
    key_file, folder = write_key(tmp_path), tmp_path / "journal"

    def journal(metrics: Any) -> Journal:
        return Journal.open(folder, key_file, 2**20, 3600.0, metrics.registry)

    service = full()
    refusal, service.refusal = service.refusal, None
    async with serving(service, journal) as api, httpx.AsyncClient(base_url=api.url) as client:
        body = {"prompt": "hi", "max_tokens": 30, "seed": 3}
        first = await client.post(COMPLETIONS, json=body, headers={header: "a name"[2:]})
        service.refusal, service.open_error = refusal, refusal
        again = await client.post(COMPLETIONS, json=body, headers={header: "a name"[2:]})
        assert first.status_code == again.status_code == 200
        assert again.json()["choices"] == first.json()["choices"]
        assert (await client.post(COMPLETIONS, json=body)).status_code == 503


async def test_keys_and_their_limits_come_first(tmp_path: Path) -> None:
    keys = key_file_in(tmp_path)
    async with serving(full(), api_keys_file=keys) as api, httpx.AsyncClient(base_url=api.url) as client:
        assert (await client.post(COMPLETIONS, json={"prompt": "hi"})).status_code == 401
        assert api.sample(UNREAD) == 0


async def test_a_body_that_is_long_or_slow_goes_the_ordinary_way() -> None:
    service = full()
    async with serving(service) as api, httpx.AsyncClient(base_url=api.url) as client:
        long = await client.post(COMPLETIONS, json={"prompt": "hi", "user": "x" * (MAX_SCANNED_BYTES + 1)})
        assert long.status_code == 200
        async with connection(api) as (reader, writer):
            body = json.dumps({"prompt": "hi"}).encode()
            head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body[:5])
            await asyncio.sleep(1.3)
            writer.write(body[5:])
            assert (await reader.readline()).split()[1] == b"200"
        assert len(service.requests) == 2 and api.sample(UNREAD) == 0


async def test_what_costs_nothing_is_served_and_a_connection_goes_on() -> None:
    service = full()
    async with serving(service) as api, httpx.AsyncClient(base_url=api.url) as client:
        assert (await client.get("/v1/models")).status_code == 200
        assert (await client.get(COMPLETIONS)).status_code == 405
        for _ in range(3):
            assert (await client.post(COMPLETIONS, json={"prompt": "hi"})).status_code == 503
        service.refusal = None
        assert (await client.post(COMPLETIONS, json={"prompt": "hi"})).status_code == 200


async def test_many_refusals_have_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "edge_agent")
    async with serving(full()) as api, httpx.AsyncClient(base_url=api.url) as client:
        for _ in range(20):
            assert (await client.post(CHAT, json=BODIES[CHAT])).status_code == 503
        assert api.sample(UNREAD) == 20
    lines = [record.getMessage() for record in caplog.records]
    (line,) = [line for line in lines if "refused unread" in line]
    assert "264 sessions are running or waiting" in line
    assert not [line for line in lines if CHAT in line]
