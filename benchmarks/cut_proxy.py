"""A TCP proxy that cuts its connections at random: after some bytes, even within a message, or after some time."""

import asyncio
import contextlib
from dataclasses import dataclass
from math import exp, log
from random import Random

_CHUNK_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class CutSettings:
    """How long connections live.

    Each one draws a limit in bytes, both directions together, and every other one a limit in seconds as well, both
    uniform in the logarithm.

    Attributes:
        min_bytes, max_bytes: range of the limit in bytes.
        min_s, max_s: range of the limit in seconds.
        max_linger_s: for up to so long the server is left with a dead connection, which it does not know to be dead.
    """

    min_bytes: int = 600
    max_bytes: int = 15_000
    min_s: float = 0.05
    max_s: float = 2.0
    max_linger_s: float = 0.2


class CutProxy:
    """Forwards to 127.0.0.1:`target_port` and counts in `num_cuts` what it has cut."""

    def __init__(self, target_port: int, settings: CutSettings, seed: int) -> None:
        self.num_cuts = 0
        self._target_port = target_port
        self._settings = settings
        self._random = Random(seed)
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Listens on a free port of the loopback interface and returns it."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """Stops listening and closes every connection."""
        self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        settings, draw = self._settings, self._random
        limit_bytes = round(exp(draw.uniform(log(settings.min_bytes), log(settings.max_bytes))))
        limit_s = exp(draw.uniform(log(settings.min_s), log(settings.max_s))) if draw.random() < 0.5 else None
        linger_s = max(0.0, draw.uniform(-settings.max_linger_s, settings.max_linger_s))
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        pipe = _Pipe(limit_bytes)
        pumps = {
            asyncio.create_task(pipe.pump(reader, server_writer)),
            asyncio.create_task(pipe.pump(server_reader, writer)),
        }
        try:
            done, _ = await asyncio.wait(pumps, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if not done or pipe.is_used_up:
                self.num_cuts += 1
                writer.transport.abort()
                await asyncio.sleep(linger_s)
        finally:
            writer.transport.abort()
            server_writer.transport.abort()
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)


class _Pipe:
    """Both directions of one connection, with one allowance."""

    def __init__(self, limit_bytes: int) -> None:
        self._num_left = limit_bytes

    @property
    def is_used_up(self) -> bool:
        return self._num_left <= 0

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while not self.is_used_up and (data := await reader.read(_CHUNK_BYTES)):
                data = data[: self._num_left]
                self._num_left -= len(data)
                writer.write(data)
                await writer.drain()
