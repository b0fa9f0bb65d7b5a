"""The edge's listening socket: what it accepts sends small chunks at once."""

import asyncio
import socket

import pytest

from edge_agent.app import bind
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
