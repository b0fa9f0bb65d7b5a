"""A TCP proxy's bare frame: it accepts, connects to the target, carries both directions and counts them."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from enum import IntEnum

CHUNK_BYTES = 65_536


class Direction(IntEnum):
    """UP is towards the target."""

    UP = 0
    DOWN = 1


@dataclass(frozen=True, slots=True)
class End:
    """One end of a connection that runs through the proxy."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class ForwardingProxy:
    """Forwards to `host`:`target_port` and counts the bytes of each direction.

    Args:
        target_port: where connections lead to.
        host: of the target, and the address listened on.
    """

    def __init__(self, target_port: int, host: str = "127.0.0.1") -> None:
        self.target_port = target_port
        self.port = 0
        self._host = host
        self._num_bytes = [0, 0]  # by direction
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def num_bytes_up(self) -> int:
        """Bytes that have arrived for the target."""
        return self._num_bytes[Direction.UP]

    @property
    def num_bytes_down(self) -> int:
        """Bytes that have arrived from the target."""
        return self._num_bytes[Direction.DOWN]

    async def start(self) -> int:
        """Listens on a free port and returns it."""
        self._server = await asyncio.start_server(self._accept, self._host, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self.port

    def cut(self) -> None:
        """Resets every connection that stands; new ones are accepted."""
        for connection in self._connections:
            connection.cancel()

    async def stop(self) -> None:
        """Stops listening and closes every connection."""
        if self._server is not None:
            self._server.close()
        self.cut()
        if self._connections:
            await asyncio.wait(self._connections)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def forget(connection: asyncio.Task[None]) -> None:
            writer.transport.abort()  # here, since a task that is cancelled at once never runs
            self._connections.discard(connection)

        connection = asyncio.create_task(self._serve(End(reader, writer)))
        self._connections.add(connection)
        connection.add_done_callback(forget)

    async def _serve(self, client: End) -> None:
        try:
            target = End(*await self._connect())
        except OSError:
            return
        try:
            await self._carry(client, target)
        finally:
            target.writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._host, self.target_port)

    async def _carry(self, client: End, target: End) -> None:
        """Carries a connection until its end; both writers are aborted after it."""
        await run_pumps(
            self._forward(client.reader, target.writer, Direction.UP),
            self._forward(target.reader, client.writer, Direction.DOWN),
        )

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: Direction) -> None:
        while data := await source.read(CHUNK_BYTES):
            self._count(direction, data)
            sink.write(data)
            await sink.drain()
        sink.write_eof()

    def _count(self, direction: Direction, data: bytes) -> None:
        self._num_bytes[direction] += len(data)


async def run_pumps(*pumps: Coroutine[None, None, None]) -> None:
    """Runs the pumps of a connection: directions end one by one, but a reset one takes the others with it."""
    tasks = [asyncio.create_task(pump) for pump in pumps]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
