"""The verifier as this edge reaches it: the edge's own client, on an event loop in a thread, for checks to ask."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from edge_agent.settings import EdgeSettings
from edge_agent.transport import link_tls
from edge_agent.verifier_client import VerifierClient
from edge_agent.verifier_stream import stub_of
from specedge.verification.v1 import verification_pb2 as pb
from specedge.wire import codec
from specedge.wire.messages import PROTOCOL_VERSION, ServerInfo
from specedge_cli.doctor.credentials import metadata_of

T = TypeVar("T")

_CLOSE_S = 5.0
_PADDED_METHOD = "/specedge.verification.v1.VerificationService/GetServerInfo"
_PADDING_FIELD = 999
"""A field that no version of GetServerInfoRequest has: peers ignore what they do not know."""


class VerifierLink:
    """Asks the verifier that an edge's settings name. Leave it to end its connection.

    Args:
        settings: the edge's.
    """

    def __init__(self, settings: EdgeSettings) -> None:
        self._settings = settings
        self._client: VerifierClient | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="verifier link", daemon=True)
        self._thread.start()

    def ask(self, question: Callable[[VerifierClient], Coroutine[Any, Any, T]], timeout_s: float) -> T:
        """The answer to a question, from any thread.

        Raises:
            TimeoutError: it took longer than `timeout_s`.
            SettingsError: a TLS file cannot be used.
            grpc.aio.AioRpcError, SpecEdgeError: what the question raises.
        """
        future = asyncio.run_coroutine_threadsafe(self._within(question, timeout_s), self._loop)
        return future.result(timeout_s + 1.0)

    async def _within(self, question: Callable[[VerifierClient], Coroutine[Any, Any, T]], timeout_s: float) -> T:
        if self._client is None:
            tls = link_tls(self._settings)
            self._client = VerifierClient(
                self._settings.verifier_address, tls=tls, metadata=metadata_of(self._settings)
            )
        async with asyncio.timeout(timeout_s):
            return await question(self._client)

    def close(self) -> None:
        """End the connection and the thread."""
        if self._client is not None:
            # What is left open here ends with the process.
            with contextlib.suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result(_CLOSE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_S)
        if not self._thread.is_alive():
            self._loop.close()


async def ask_info(client: VerifierClient, timeout_s: float = 4.0) -> ServerInfo:
    """What the verifier serves, whatever tokenizer this edge has.

    Raises:
        grpc.aio.AioRpcError: it does not answer, or refuses.
        ProtocolError: it speaks another version.
    """
    request = pb.GetServerInfoRequest(protocol_version=PROTOCOL_VERSION)
    async with client.connection.link() as link:
        answer = await stub_of(link).GetServerInfo(request, timeout=timeout_s, metadata=client.metadata())
    return codec.decode_server_info(answer)


async def is_serving(client: VerifierClient, timeout_s: float = 4.0) -> bool:
    """What its health check says; raises AioRpcError."""
    async with client.connection.link() as link:
        health: Any = health_pb2_grpc.HealthStub(link.channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s, metadata=client.metadata())
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def measure_pings(client: VerifierClient, num_pings: int) -> list[float]:
    """Seconds of health checks, one after the other; the first, which connects, is not among them."""
    loop = asyncio.get_running_loop()
    await is_serving(client)
    seconds = []
    for _ in range(num_pings):
        asked_s = loop.time()
        await is_serving(client)
        seconds.append(loop.time() - asked_s)
    return seconds


async def measure_padded(client: VerifierClient, num_bytes: int) -> float:
    """Seconds of a GetServerInfo call that carries so many bytes in a field that verifiers ignore."""
    loop = asyncio.get_running_loop()
    padding = bytes(num_bytes)
    request = pb.GetServerInfoRequest(protocol_version=PROTOCOL_VERSION).SerializeToString()
    payload = request + _varint(_PADDING_FIELD << 3 | 2) + _varint(num_bytes) + padding
    async with client.connection.link() as link:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = link.channel.unary_unary(_PADDED_METHOD)
        asked_s = loop.time()
        await call(payload, timeout=10.0, metadata=client.metadata())
        return loop.time() - asked_s


def _varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
