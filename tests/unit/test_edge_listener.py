"""The edge's listening socket: what it accepts sends small chunks at once."""

import asyncio
import socket

import pytest
from fakes import until
from http_support import FakeService, tokenizer

from edge_agent import listener as listener_module
from edge_agent.http.app import create_app
from edge_agent.http.server import BoundedProtocol, http_server
from edge_agent.http.settings import HttpSettings
from edge_agent.listener import bind
from edge_agent.metrics import EdgeMetrics
from specedge.errors import InvalidRequest


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_no_chunk_waits_for_the_client_to_acknowledge_the_one_before(host: str) -> None:
    delays: asyncio.Queue[int] = asyncio.Queue()

    def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted = writer.get_extra_info("socket")
        delays.put_nowait(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    try:
        listener = bind(host, 0)
    except InvalidRequest:
        pytest.skip(f"this machine has no {host}")
    async with await asyncio.start_server(accept, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname()[:2])
        assert await delays.get() == 1
        writer.close()
        await writer.wait_closed()


def test_an_address_in_use_is_named() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InvalidRequest, match=rf"cannot listen on 127\.0\.0\.1:{port}"):
            bind("127.0.0.1", port)


async def test_an_answer_ends_whose_client_takes_nothing_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "PROBE_AFTER_S", 1)
    monkeypatch.setattr(listener_module, "PROBE_EVERY_S", 1)
    monkeypatch.setattr(listener_module, "GONE_S", 2)
    service = FakeService(is_endless=True)
    app = create_app(service, tokenizer(), HttpSettings(model_name="demo"), EdgeMetrics(lambda: "demo"))
    with bind("127.0.0.1", 0) as listener, socket.socket() as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        server = http_server(app, drain_timeout_s=5)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await until(lambda: server.started, 20.0)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(listener.getsockname())
            body = b'{"model": "demo", "prompt": "a", "max_tokens": 1000, "stream": true, "ignore_eos": true}'
            head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
            client.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + body)
            await until(lambda: service.num_open == 1, 20.0)
            await until(lambda: service.num_open == 0, 20.0)
        finally:
            server.should_exit = True
            await task


async def test_a_connection_whose_body_came_after_the_answer_serves_the_next_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(BoundedProtocol, "head_timeout_s", 0.2)
    app = create_app(FakeService(), tokenizer(), HttpSettings(model_name="demo"), EdgeMetrics(lambda: "demo"))
    head = b"POST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n"
    with bind("127.0.0.1", 0) as listener:
        server = http_server(app, drain_timeout_s=5)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await until(lambda: server.started, 20.0)
            reader, writer = await asyncio.open_connection(*listener.getsockname()[:2])
            for _ in range(2):
                writer.write(head)
                answer = await asyncio.wait_for(reader.readuntil(b"}}"), 20)
                assert answer.startswith(b"HTTP/1.1 404")
                writer.write(b"{}")
                await asyncio.sleep(0.6)
            writer.close()
        finally:
            server.should_exit = True
            await task


def test_idle_connections_are_kept_longer_than_clients_and_proxies_keep_them() -> None:
    assert http_server(lambda *_: None, drain_timeout_s=5).config.timeout_keep_alive > 60  # type: ignore[arg-type]
