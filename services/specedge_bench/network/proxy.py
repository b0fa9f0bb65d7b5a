"""A TCP proxy that gives the way between an edge and a verifier the shape of a network profile."""

import asyncio
from collections import deque

from specedge_bench.network.forwarding import CHUNK_BYTES, Direction, End, ForwardingProxy, run_pumps
from specedge_bench.network.profiles import NetworkProfile
from specedge_bench.network.shape import Flow, Line

MAX_BYTES_ON_THE_WAY = 8 * 1024 * 1024
_BYTES_PER_CHUNK = 256  # what keeping a chunk costs beside its data


class NetworkProxy(ForwardingProxy):
    """Forwards to `host`:`target_port`, shaped; counts the bytes of each direction.

    Every chunk has a due time of its own, so chunks that follow each other closely arrive as closely. All connections
    share one line each way; each keeps its own order. TCP cannot lose bytes, so a lost packet shows as what it costs
    a TCP connection: the wait for its repetition, which all bytes behind it share. Setting up a connection takes no
    extra time (the streams to a verifier share one that stands), and there is no slow start. At most
    MAX_BYTES_ON_THE_WAY are kept for each direction of a connection; the sender is held up beyond.

    A loop that waits with epoll wakes up to a millisecond late, each way; the process of its own (`proxy_process`)
    does not.

    Args:
        target_port: where connections lead to.
        profile: may be changed at any time, for what arrives from then on.
        host: of the target, and the address listened on.
        seed: of jitter and loss.
    """

    def __init__(self, target_port: int, profile: NetworkProfile, host: str = "127.0.0.1", seed: int = 0) -> None:
        super().__init__(target_port, host)
        self._profile = profile
        self._lines = Line(profile.up, 2 * seed), Line(profile.down, 2 * seed + 1)

    @property
    def profile(self) -> NetworkProfile:
        return self._profile

    @profile.setter
    def profile(self, profile: NetworkProfile) -> None:
        self._profile = profile
        self._lines[Direction.UP].shape = profile.up
        self._lines[Direction.DOWN].shape = profile.down

    async def _carry(self, client: End, target: End) -> None:
        up, down = _Way(Flow(self._lines[Direction.UP])), _Way(Flow(self._lines[Direction.DOWN]))
        await run_pumps(
            self._take(client.reader, up, Direction.UP),
            up.deliver(target.writer),
            self._take(target.reader, down, Direction.DOWN),
            down.deliver(client.writer),
        )

    async def _take(self, source: asyncio.StreamReader, way: "_Way", direction: Direction) -> None:
        while data := await source.read(CHUNK_BYTES):
            self._count(direction, data)
            await way.send(data)
        await way.send(b"")


class _Way:
    """The bytes of one direction of a connection that are on their way; an empty chunk is the end."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._chunks: deque[tuple[float, bytes]] = deque()
        self._num_bytes = 0
        self._has_chunks = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()

    async def send(self, data: bytes) -> None:
        """Sends a chunk, and waits while too much is on the way."""
        self._chunks.append((self._flow.chunk_arrival_s(len(data), asyncio.get_running_loop().time()), data))
        self._has_chunks.set()
        self._keep(len(data) + _BYTES_PER_CHUNK)
        await self._has_room.wait()

    async def deliver(self, sink: asyncio.StreamWriter) -> None:
        """Passes chunks on when they are due."""
        loop = asyncio.get_running_loop()
        while True:
            await self._has_chunks.wait()
            due_s, data = self._chunks.popleft()
            if not self._chunks:
                self._has_chunks.clear()
            if (pause_s := due_s - loop.time()) > 0:
                await asyncio.sleep(pause_s)
            if not data:
                sink.write_eof()
                return
            sink.write(data)
            await sink.drain()
            self._keep(-len(data) - _BYTES_PER_CHUNK)

    def _keep(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        if self._num_bytes < MAX_BYTES_ON_THE_WAY:
            self._has_room.set()
        else:
            self._has_room.clear()
