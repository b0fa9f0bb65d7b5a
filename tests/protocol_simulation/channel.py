"""The client's side of the gRPC library: what `VerifierChannel` and the stubs use of grpc.aio.Channel."""

import asyncio
from collections.abc import Callable, Generator
from contextvars import ContextVar
from typing import Any

import grpc

from protocol_simulation.calls import Metadata, Method, Status, StreamCall
from protocol_simulation.network import Connection, Network
from protocol_simulation.world import World

EDGE: ContextVar[str] = ContextVar("the edge that runs")

RECONNECT_S = 0.1
GENERATE = "/specedge.verification.v1.VerificationService/Generate"


class Channel:
    """One edge's way to one verifier; connects when it is used."""

    def __init__(self, network: Network, address: str) -> None:
        self.world: World = network.world
        self.dice = network.world.fork()
        self._network = network
        self._address = address
        self.edge = EDGE.get()
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[Connection | None] | None = None
        self._retry_s = 0.0
        self._is_closed = False

    async def connect(self) -> Connection | None:
        """The connection; None where there is none to be had."""
        if self._connection is not None and not self._connection.is_known_cut:
            return self._connection
        if self._is_closed or self.world.now_s < self._retry_s:
            return None
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._network.connect(self.edge, self._address))
            self._connecting.add_done_callback(self._connected)
        await asyncio.wait({self._connecting})
        return self._connection

    def _connected(self, task: "asyncio.Task[Connection | None]") -> None:
        self._connecting = None
        self._connection = None if task.cancelled() else task.result()
        if self._connection is None:
            self._retry_s = self.world.now_s + RECONNECT_S * self.dice.uniform(0.8, 1.2)

    def written(self, call: StreamCall, data: bytes) -> None:
        """A call sends a message."""
        if call.method.path == GENERATE:
            self._network.histories.written(call, data)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        if self._connection is None or self._connection.is_known_cut:
            return grpc.ChannelConnectivity.TRANSIENT_FAILURE
        return grpc.ChannelConnectivity.READY

    async def channel_ready(self) -> None:
        while await self.connect() is None:  # noqa: ASYNC110
            await asyncio.sleep(RECONNECT_S)

    async def close(self) -> None:
        self._is_closed = True
        if self._connection is not None:
            for call in [*self._connection.client_calls]:
                call.cancel()

    def stream_stream(
        self,
        path: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        _registered_method: bool,
    ) -> Callable[..., StreamCall]:
        method = Method(path, request_serializer, response_deserializer)

        def begin(metadata: Metadata) -> StreamCall:
            return StreamCall(self, method, metadata)

        return begin

    def unary_stream(self, *_: object, **__: object) -> None:
        """Health is asked, never watched."""

    def unary_unary(
        self,
        path: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        _registered_method: bool,
    ) -> Callable[..., "UnaryCall"]:
        method = Method(path, request_serializer, response_deserializer)

        def begin(request: Any, timeout: float, metadata: Metadata) -> UnaryCall:
            return UnaryCall(StreamCall(self, method, metadata), request, timeout)

        return begin


class UnaryCall:
    """What is used of grpc.aio.UnaryUnaryCall."""

    def __init__(self, call: StreamCall, request: Any, timeout_s: float) -> None:
        self._call = call
        self._request = request
        self._timeout_s = timeout_s
        self._metadata: Metadata = ()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._run().__await__()

    async def trailing_metadata(self) -> Metadata:
        return self._metadata

    async def _run(self) -> Any:
        call = self._call
        try:
            async with asyncio.timeout(self._timeout_s):
                await call.write(self._request)
                response = await call.read()
                await call.read()  # the status
        except TimeoutError:
            raise Status(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded").error from None
        finally:
            call.cancel()
        assert call.status is not None
        self._metadata = call.status.metadata
        return response
