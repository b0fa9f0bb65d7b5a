"""A TCP proxy between an edge and a verifier: it counts bytes, and its connections can be cut."""

import asyncio
import contextlib
from collections.abc import Callable

from fakes import until


class TcpProxy:
    """Forwards TCP connections to a port and counts bytes; connections can be cut."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.num_bytes_up = 0
        self.num_bytes_down = 0
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Resets every connection; new ones are accepted."""
        for writer in self._writers:
            writer.transport.abort()

    async def close(self) -> None:
        self._server.close()
        self.cut()
        await until(lambda: not self._writers)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, up_writer}
        await asyncio.gather(
            self._forward(reader, up_writer, self._count_up), self._forward(up_reader, writer, self._count_down)
        )
        self._writers -= {writer, up_writer}

    def _count_up(self, num_bytes: int) -> None:
        self.num_bytes_up += num_bytes

    def _count_down(self, num_bytes: int) -> None:
        self.num_bytes_down += num_bytes

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: Callable[[int], None]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                count(len(data))
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
