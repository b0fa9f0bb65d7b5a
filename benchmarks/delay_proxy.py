"""A TCP proxy that makes the way between an edge and a verifier longer: half a round-trip time in each direction.

Every chunk has a due time of its own, so chunks that follow each other closely arrive as closely: delay is added, rate
is not taken. Setting up a connection takes no extra time; the streams to a verifier share one that stands.
"""

import asyncio

_CHUNK_BYTES = 65_536
_MAX_CHUNKS_ON_THE_WAY = 1024


class DelayProxy:
    """Forwards to `host`:`target_port` and counts the bytes of each direction.

    Args:
        target_port: where connections lead to.
        rtt_s: the round-trip time added; may be changed at any time, for what arrives from then on.
        host: of the target, and the address listened on.
    """

    def __init__(self, target_port: int, rtt_s: float = 0.0, host: str = "127.0.0.1") -> None:
        self.rtt_s = rtt_s
        self._host = host
        self._target_port = target_port
        self._num_bytes = [0, 0]  # up, down
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def num_bytes_up(self) -> int:
        """Bytes that have arrived for the target."""
        return self._num_bytes[0]

    @property
    def num_bytes_down(self) -> int:
        """Bytes that have arrived from the target."""
        return self._num_bytes[1]

    async def start(self) -> int:
        """Listens on a free port and returns it."""
        self._server = await asyncio.start_server(self._accept, self._host, 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """Stops listening and closes every connection."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target_reader, target_writer = await asyncio.open_connection(self._host, self._target_port)
        except OSError:
            writer.transport.abort()
            return
        pumps: set[asyncio.Task[None]] = set()
        for direction, source, sink in ((0, reader, target_writer), (1, target_reader, writer)):
            chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MAX_CHUNKS_ON_THE_WAY)
            pumps.add(asyncio.create_task(self._take(source, chunks, direction)))
            pumps.add(asyncio.create_task(_deliver(chunks, sink)))
        try:
            # Both directions end one by one; a connection that was reset takes the other one with it.
            await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            writer.transport.abort()
            target_writer.transport.abort()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _take(
        self, source: asyncio.StreamReader, chunks: asyncio.Queue[tuple[float, bytes]], direction: int
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            data = await source.read(_CHUNK_BYTES)
            self._num_bytes[direction] += len(data)
            await chunks.put((loop.time() + self.rtt_s / 2, data))
            if not data:
                return


async def _deliver(chunks: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter) -> None:
    """Passes chunks on when they are due, in order; an empty one is the end."""
    loop = asyncio.get_running_loop()
    while True:
        due_s, data = await chunks.get()
        if (pause_s := due_s - loop.time()) > 0:
            await asyncio.sleep(pause_s)
        if not data:
            sink.write_eof()
            return
        sink.write(data)
        await sink.drain()
