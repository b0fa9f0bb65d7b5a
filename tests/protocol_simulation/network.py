"""The network: one connection per edge and verifier, on which every stream has a pace of its own.

Within one direction of one stream messages come in order; between streams they overtake each other. A connection may
fall silent for a while, after which what was sent comes late, or for good, which each end notices when its keepalive
does; and it may be cut, whereupon everything under way is lost.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from protocol_simulation.world import World

if TYPE_CHECKING:
    from protocol_simulation.calls import ServerCall, StreamCall
    from protocol_simulation.engine import Histories
    from protocol_simulation.server import Server

KEEPALIVE_S: Final = 1.5
"""After so much silence an end gives a connection up."""
CONNECT_TIMEOUT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class LinkQuality:
    """What messages on a connection suffer: a delay, more of it at random, and sometimes much more."""

    delay_s: float
    jitter_s: float
    spike_probability: float
    window: int  # messages of one direction of a stream that may be unread


class Lane:
    """One direction of one stream: messages in order, each after a delay of its own."""

    def __init__(self, connection: "Connection", deliver: Callable[[Any], None]) -> None:
        self._connection = connection
        self._deliver = deliver
        self._under_way: deque[Any] = deque()
        self._last_s = 0.0
        self.num_unread = 0

    def send(self, item: Any) -> None:
        """Puts an item on its way."""
        connection = self._connection
        now_s = connection.world.now_s
        self._last_s = max(self._last_s, now_s + connection.delay_s())
        connection.busy_until_s = max(connection.busy_until_s, self._last_s)
        self._under_way.append(item)
        connection.world.loop.call_at(self._last_s, self._arrive)

    def _arrive(self) -> None:
        connection = self._connection
        if connection.is_cut:
            connection.world.note("message lost")
            return
        if (wait_s := connection.silent_until_s - connection.world.now_s) > 0:
            connection.world.counts["message delayed by silence"] += 1
            connection.world.loop.call_later(wait_s, self._arrive)
            return
        self._deliver(self._under_way.popleft())


class Connection:
    """One HTTP/2 connection from an edge to a verifier.

    Attributes:
        silent_until_s: nothing arrives before.
        busy_until_s: by then all that has been sent has arrived, if nothing falls silent.
        is_cut: nothing arrives any more.
    """

    def __init__(self, world: World, quality: LinkQuality, server: "Server", edge: str) -> None:
        self.world = world
        self.quality = quality
        self.server = server
        self.edge = edge
        self.silent_until_s = 0.0
        self.busy_until_s = 0.0
        self.is_cut = False
        self.is_known_cut = False  # to the edge
        self.client_calls: dict[StreamCall, None] = {}
        self.server_calls: dict[ServerCall, None] = {}
        self.dice = world.fork()

    def delay_s(self) -> float:
        """Of one message."""
        quality, dice = self.quality, self.dice
        delay_s = quality.delay_s + dice.expovariate(1.0) * quality.jitter_s
        return delay_s * 10 if dice.random() < quality.spike_probability else delay_s

    def fall_silent(self, silence_s: float) -> None:
        """For a while, or until the keepalives of both ends end it."""
        self.silent_until_s = max(self.silent_until_s, self.world.now_s + silence_s)
        if silence_s > KEEPALIVE_S:
            self.cut(self.dice.uniform(0.5, 1.0) * KEEPALIVE_S, self.dice.uniform(0.5, 1.0) * KEEPALIVE_S)

    def cut(self, client_after_s: float, server_after_s: float) -> None:
        """Nothing arrives any more; each end notices after a while."""
        if not self.is_cut:
            self.is_cut = True
            self.world.loop.call_later(client_after_s, self._client_notices)
            self.world.loop.call_later(server_after_s, self._server_notices)

    def _client_notices(self) -> None:
        self.is_known_cut = True
        for call in [*self.client_calls]:
            call.connection_lost()

    def _server_notices(self) -> None:
        for call in [*self.server_calls]:
            call.connection_lost()


class Network:
    """Who can reach whom."""

    def __init__(self, world: World, histories: "Histories", draw_quality: Callable[[], LinkQuality]) -> None:
        self.world = world
        self.histories = histories
        self.servers: dict[str, Server] = {}  # by address: those that listen
        self.connections: dict[Connection, None] = {}
        self.unreachable_until_s: dict[tuple[str, str], float] = {}  # by edge and address
        self._draw_quality = draw_quality
        self._qualities: dict[tuple[str, str], LinkQuality] = {}

    def quality(self, edge: str, address: str) -> LinkQuality:
        """Of the way between them, which stays what it is."""
        known = self._qualities.get((edge, address))
        if known is None:
            known = self._qualities[edge, address] = self._draw_quality()
        return known

    async def connect(self, edge: str, address: str) -> Connection | None:
        """A new connection; None where it is refused or nothing answers."""
        quality = self.quality(edge, address)
        if self.unreachable_until_s.get((edge, address), 0.0) > self.world.now_s:
            self.world.note("connection timed out")
            await asyncio.sleep(CONNECT_TIMEOUT_S)
            return None
        await asyncio.sleep(2 * quality.delay_s)
        server = self.servers.get(address)
        if server is None:
            self.world.note("connection refused")
            return None
        connection = Connection(self.world, quality, server, edge)
        self.connections[connection] = None
        return connection

    def between(self, edge: str | None, address: str | None) -> list[Connection]:
        """The connections that stand; None stands for any."""
        return [
            connection
            for connection in self.connections
            if not connection.is_cut
            and edge in (None, connection.edge)
            and address in (None, connection.server.address)
        ]

    def listen(self, server: "Server") -> None:
        """A server begins."""
        self.servers[server.address] = server

    def vanish(self, server: "Server", *, silently: bool) -> None:
        """A server has gone, with a word to its peers or without."""
        if self.servers.get(server.address) is server:
            del self.servers[server.address]
        for connection in self.between(None, server.address):
            if connection.server is server:
                connection.cut(KEEPALIVE_S if silently else connection.quality.delay_s, 0.0)
