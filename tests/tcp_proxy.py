"""A TCP proxy between an edge and a verifier: it counts bytes, and its connections can be cut or fall silent."""

import asyncio

from specedge_bench.network.forwarding import Direction, ForwardingProxy


class TcpProxy(ForwardingProxy):
    """Forwards to 127.0.0.1:`target_port`, as fast as it can."""

    def __init__(self, target_port: int, host: str = "127.0.0.1") -> None:
        super().__init__(target_port, host)
        self._passes = asyncio.Event()
        self._passes.set()

    def freeze(self) -> None:
        """Connections stand and are accepted, and nothing passes any more."""
        self._passes.clear()

    async def close(self) -> None:
        """No connection is accepted from now on, and those that stand are reset."""
        await self.stop()

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: Direction) -> None:
        while data := await source.read(2**16):
            await self._passes.wait()
            self._count(direction, data)
            sink.write(data)
            await sink.drain()
        sink.write_eof()
