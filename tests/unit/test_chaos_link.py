"""The network that chaos disturbs: what each disturbance lets through, and that mending it mends it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from echo import serving_port
from resilience.link import Link

from specedge_bench.network.forwarding import Direction

SOON_S = 0.05
DEADLINE_S = 10.0


@asynccontextmanager
async def linked() -> AsyncIterator[Link]:
    async with serving_port() as port, asyncio.timeout(DEADLINE_S):
        link = Link(port)
        await link.start()
        try:
            yield link
        finally:
            await link.stop()


@asynccontextmanager
async def connected(link: Link) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def said_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    writer.write(b"x")
    try:
        async with asyncio.timeout(SOON_S):
            return await reader.readexactly(1) == b"x"
    except TimeoutError:
        return False


async def test_a_lost_network_resets_what_stands_and_what_comes() -> None:
    async with linked() as link:
        async with connected(link) as (reader, writer):
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            link.lose()
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
        async with connected(link) as (reader, writer):
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
        link.mend()
        async with connected(link) as (reader, writer):
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"


@pytest.mark.parametrize("direction", Direction)
async def test_a_silent_network_keeps_what_it_is_given(direction: Direction) -> None:
    async with linked() as link, connected(link) as (reader, writer):
        link.silence(direction)
        assert not await said_back(reader, writer)
        link.mend()
        assert await reader.readexactly(1) == b"x"


@pytest.mark.parametrize("direction", Direction)
async def test_a_half_closed_connection_is_over_and_the_next_one_is_whole(direction: Direction) -> None:
    async with linked() as link, connected(link) as (reader, writer):
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        await link.half_close(direction)
        # Up, the server answers its end with its own.
        assert await reader.read() == b""
        link.mend()
        async with connected(link) as (fresh, other):
            other.write(b"x")
            assert await fresh.readexactly(1) == b"x"
