"""Calls in flight, with the ways of grpc.aio: a status ends all, and what has not been read by then may be lost."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc

from edge_agent.verifier_stream import FAILED_WRITE_DETAILS
from protocol_simulation.network import Connection, Lane

if TYPE_CHECKING:
    from protocol_simulation.channel import Channel

Metadata = tuple[tuple[str, str], ...]

CALL: "ContextVar[StreamCall | None]" = ContextVar("the call being served", default=None)


@dataclass(frozen=True, slots=True)
class Status:
    """How a call ended."""

    code: grpc.StatusCode
    details: str = ""
    metadata: Metadata = ()

    @property
    def error(self) -> grpc.aio.AioRpcError:
        """As it is raised."""
        return grpc.aio.AioRpcError(self.code, None, self.metadata, self.details)


OK = Status(grpc.StatusCode.OK)
CANCELLED = Status(grpc.StatusCode.CANCELLED, "Locally cancelled by application!")
LOST = Status(grpc.StatusCode.UNAVAILABLE, "Connection reset by peer")


@dataclass(slots=True)
class Method:
    """A method of a service, as its stub was made."""

    path: str
    serialize: Callable[[Any], bytes]
    deserialize: Callable[[bytes], Any]


@dataclass(eq=False)
class StreamCall:
    """The client's end of a call; what `VerifierStream` uses of grpc.aio.StreamStreamCall."""

    channel: "Channel"
    method: Method
    metadata: Metadata
    status: Status | None = None
    connection: Connection | None = None
    _inbox: deque[Any] = field(default_factory=deque)
    _callbacks: list[Callable[[Any], None]] = field(default_factory=list)
    _lane: Lane | None = None
    server_call: "ServerCall | None" = None

    def __post_init__(self) -> None:
        self._has_failed_write = False
        self._changed = asyncio.Event()
        self._connecting = asyncio.create_task(self._open())

    async def _open(self) -> None:
        connection = await self.channel.connect()
        if self.status is not None:
            return
        if connection is None:
            self._finish(Status(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses"))
            return
        self.connection = connection
        connection.client_calls[self] = None
        self.server_call = ServerCall(self, connection)
        self._lane = Lane(connection, self.server_call.arrive)
        self._lane.send(("open", None))
        self._changed.set()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    async def code(self) -> grpc.StatusCode:
        assert self.status is not None
        return self.status.code

    async def details(self) -> str:
        assert self.status is not None
        return self.status.details

    async def trailing_metadata(self) -> Metadata:
        assert self.status is not None
        return self.status.metadata

    def cancel(self) -> bool:
        if self.status is not None:
            return False
        if self._lane is not None:
            self._lane.send(("cancel", None))
        self._finish(CANCELLED)
        return True

    async def write(self, message: Any) -> None:
        if self.status is not None:
            raise asyncio.InvalidStateError("RPC already finished.")
        try:
            while self.status is None and (self._lane is None or self._is_full):
                await self._wait()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if self.status is None and any(kind == "end" for kind, _ in self._inbox):
            self._write_failed()
        if self.status is not None:
            self._raise_for_status()
            return
        assert self._lane is not None
        self._lane.num_unread += 1
        data = self.method.serialize(message)
        self.channel.written(self, data)
        self._lane.send(("message", data))

    @property
    def _is_full(self) -> bool:
        assert self._lane is not None and self.connection is not None
        return self._lane.num_unread >= self.connection.quality.window

    def _write_failed(self) -> None:
        """The server had ended the call: core says so in its own words, before or after the server's."""
        (status,) = (item for kind, item in self._inbox if kind == "end")
        self.channel.world.note("write after the end")
        self._has_failed_write = True
        internal = Status(grpc.StatusCode.INTERNAL, FAILED_WRITE_DETAILS)
        if self.channel.dice.random() < 0.5:
            self._finish(status)
            self._finish(internal)
        else:
            self._finish(internal)
            self.channel.world.loop.call_later(0.01, self._finish, status)

    async def __aiter__(self) -> AsyncIterator[Any]:
        """What has come is told to the end, also when a write has failed meanwhile."""
        while (message := await self._next()) is not grpc.aio.EOF:
            yield message
        self._raise_for_status()

    async def read(self) -> Any:
        """The next message, or the end."""
        if (message := await self._next()) is grpc.aio.EOF:
            self._raise_for_status()
        return message

    async def _next(self) -> Any:
        try:
            while self.status is None and not self._inbox:
                await self._wait()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if self.status is not None and not self._has_failed_write:
            return grpc.aio.EOF
        kind, item = self._inbox.popleft()
        if kind == "end":
            if self.status is None:
                self._finish(item)
            return grpc.aio.EOF
        assert self.server_call is not None
        self.server_call.was_read()
        return self.method.deserialize(item)

    def arrive(self, item: tuple[str, Any]) -> None:
        """Something came from the server."""
        if self.status is None:
            self._inbox.append(item)
            self._changed.set()
        elif item[0] == "message":
            self.channel.world.note("late message of an old stream")

    def was_read(self) -> None:
        """The server has read a message."""
        if self._lane is not None:
            self._lane.num_unread -= 1
            self._changed.set()

    def connection_lost(self) -> None:
        """The connection is gone, and all that has not been read."""
        if self.status is None:
            self._finish(LOST)

    def _finish(self, status: Status) -> None:
        self.status = status
        self._connecting.cancel()
        if self.connection is not None:
            self.connection.client_calls.pop(self, None)
        self._changed.set()
        for callback in self._callbacks:
            callback(self)

    def _raise_for_status(self) -> None:
        assert self.status is not None
        if self.status is CANCELLED:
            raise asyncio.CancelledError
        if self.status.code is not grpc.StatusCode.OK:
            raise self.status.error

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()


class ServerCall:
    """The server's end of a call: what handlers use of grpc.aio.ServicerContext."""

    def __init__(self, client: StreamCall, connection: Connection) -> None:
        self.client = client
        self.connection = connection
        self.task: asyncio.Task[Any] | None = None
        self.is_over = False
        self.told: list[bytes] = []
        self.tells_twice = False
        self.trailing_metadata: Metadata = ()
        self._lane = Lane(connection, client.arrive)
        self._inbox: deque[bytes] = deque()
        self._is_closed = False
        self._changed = asyncio.Event()
        self._handler: Any = None

    def arrive(self, item: tuple[str, Any]) -> None:
        """Something came from the client."""
        kind, data = item
        if kind == "open":
            self.connection.server_calls[self] = None
            self._handler = self.connection.server.accept(self)
        elif kind == "message":
            self._inbox.append(data)
            self._changed.set()
        else:
            self.connection_lost()

    def connection_lost(self) -> None:
        """The client has cancelled, or cannot be reached: the handler's reads end, and it is cancelled."""
        self._is_closed = True
        self._inbox.clear()
        self._changed.set()
        self.connection.server_calls.pop(self, None)
        if self.task is not None:
            if self.connection.dice.random() < 0.5:
                self.task.cancel()
            else:  # what its reads say may be heard first
                self.connection.world.loop.call_soon(self.task.cancel)

    def peer(self) -> str:
        return f"ipv4:{self.connection.edge}"

    def invocation_metadata(self) -> Metadata:
        return self.client.metadata

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        self.trailing_metadata = metadata

    async def read(self) -> Any:
        while not self._inbox and not self._is_closed:
            self._changed.clear()
            await self._changed.wait()
        if not self._inbox:
            return grpc.aio.EOF
        data = self._inbox.popleft()
        self.client.was_read()
        return self._handler.request_deserializer(data)

    async def write(self, message: Any) -> None:
        while self._lane.num_unread >= self.connection.quality.window and not self._is_closed:
            self._changed.clear()
            await self._changed.wait()
        self.send(self._handler.response_serializer(message))

    def send(self, data: bytes) -> None:
        """Puts a message on its way."""
        if not self._is_closed and not self.is_over:
            self.told.append(data)
            for _ in range(1 + self.tells_twice):
                self._lane.num_unread += 1
                self._lane.send(("message", data))
            self.tells_twice = False

    def was_read(self) -> None:
        """The client has read a message."""
        self._lane.num_unread -= 1
        self._changed.set()

    async def abort(self, code: grpc.StatusCode, details: str = "", metadata: Metadata = ()) -> None:
        self.end(Status(code, details, metadata))
        raise grpc.aio.AbortError

    def end(self, status: Status) -> None:
        """Tells the client how it ended."""
        if not self.is_over:
            self.is_over = True
            self.connection.server_calls.pop(self, None)
            if not self._is_closed:
                self._lane.send(("end", status))
