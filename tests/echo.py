"""A TCP server that sends back what comes, and a connection to one through a network proxy."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from specedge_bench.network.profiles import NetworkProfile
from specedge_bench.network.proxy import NetworkProxy

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends back what comes, and its end."""
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def serving_port(handler: Handler = echo) -> AsyncIterator[int]:
    """The port of a server on 127.0.0.1."""
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await asyncio.sleep(0.01)  # both ends see the other one go


@asynccontextmanager
async def connection_through(
    profile: NetworkProfile, handler: Handler = echo
) -> AsyncIterator[tuple[NetworkProxy, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A proxy of this shape, and a connection through it."""
    async with serving_port(handler) as port:
        proxy = NetworkProxy(port, profile)
        reader, writer = await asyncio.open_connection("127.0.0.1", await proxy.start())
        try:
            yield proxy, reader, writer
        finally:
            writer.transport.abort()
            await proxy.stop()
