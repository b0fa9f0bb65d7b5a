"""The network between edges and one verifier, which can be cut, silenced, half-closed, slowed down, and mended."""

import asyncio
import socket
import struct
from typing import Any

from specedge_bench.network.forwarding import CHUNK_BYTES, Direction, End
from specedge_bench.network.profiles import NetworkProfile
from specedge_bench.network.proxy import NetworkProxy

CLEAR = NetworkProfile("clear", 0.0)


class Link(NetworkProxy):
    """A TCP proxy to 127.0.0.1:`target_port`."""

    def __init__(self, target_port: int, seed: int = 0) -> None:
        super().__init__(target_port, CLEAR, seed=seed)
        self.is_reachable = True
        self._passes = {direction: asyncio.Event() for direction in Direction}
        self._ends: set[End] = set()
        self._ways: dict[Direction, set[Any]] = {direction: set() for direction in Direction}
        self.mend()

    def lose(self) -> None:
        """Resets every connection; new ones are reset as they come."""
        self.is_reachable = False
        for end in self._ends:
            _reset_when_closed(end.writer)
        self.cut()

    def silence(self, *directions: Direction) -> None:
        """Nothing more arrives in these directions, and nobody is told."""
        for direction in directions:
            self._passes[direction].clear()

    async def half_close(self, direction: Direction) -> None:
        """Ends one direction of every connection: the receiver hears of it, and what the sender sends is lost."""
        ways, self._ways[direction] = self._ways[direction], set()
        for way in ways:
            await way.send(b"")

    def mend(self) -> None:
        """All is well from now on."""
        self.is_reachable = True
        self.profile = CLEAR
        for passes in self._passes.values():
            passes.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_reachable:
            super()._accept(reader, writer)
        else:
            _reset_when_closed(writer)
            writer.transport.abort()

    async def _carry(self, client: End, target: End) -> None:
        ends = {client, target}
        self._ends |= ends
        try:
            await super()._carry(client, target)
        finally:
            self._ends -= ends

    async def _take(self, source: asyncio.StreamReader, way: Any, direction: Direction) -> None:
        self._ways[direction].add(way)
        try:
            while data := await source.read(CHUNK_BYTES):
                await self._passes[direction].wait()
                self._count(direction, data)
                if way in self._ways[direction]:
                    await way.send(data)
            if way in self._ways[direction]:
                await way.send(b"")
        finally:
            self._ways[direction].discard(way)


def _reset_when_closed(writer: asyncio.StreamWriter) -> None:
    """The other end is to see a reset, not an orderly end."""
    own: socket.socket = writer.get_extra_info("socket")
    own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
