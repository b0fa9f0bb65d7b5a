"""The gRPC client: one connection to a verifier, shared by all of its streams."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from edge_agent.stream_observer import StreamCounters, StreamObserver
from edge_agent.verifier_backoff import Backoff
from edge_agent.verifier_channel import LinkTls, VerifierChannel
from edge_agent.verifier_stream import VerifierStream, stub_of
from specedge.errors import (
    CapacityExceeded,
    ModelLoadError,
    SpecEdgeError,
    Unauthenticated,
    VerifierUnavailable,
)
from specedge.verification.v1 import verification_pb2 as pb
from specedge.wire import codec
from specedge.wire.load_hint import LoadHint
from specedge.wire.messages import (
    PROTOCOL_VERSION,
    OpenSession,
    ServerInfo,
)
from specedge.wire.shaping import UNSHAPED, FrameShape
from specedge.wire.status import Metadata, from_status

logger = logging.getLogger(__name__)

INFO_TIMEOUT_S = 5.0
PING_TIMEOUT_S = 5.0
_NUM_ROUND_TRIPS = 10
REFUSED_PAUSE_S = 5.0
"""How long an edge waits that the verifier does not know, until it asks again: only a person can change that."""


def no_metadata() -> Metadata:
    """Calls carry nothing besides their messages."""
    return ()


class Pulse(NamedTuple):
    """An answer to a ping: whether new sessions are served, and how busy the verifier is, as far as it tells."""

    is_serving: bool
    load: LoadHint | None


class VerifierClient:
    """Talks to a verifier. Create it on the event loop; close it there.

    Args:
        address: host:port or unix:path.
        observer: is told what happens on the streams.
        tls: makes sure of the verifier, and shows it who this edge is; None speaks plain text.
        metadata: asked for at every call and sent with it.
        shape: lengths and times of the messages of sessions.

    Attributes:
        refusal: why the verifier does not know this edge, as it said to the last call; None once it does.
    """

    def __init__(
        self,
        address: str,
        observer: StreamObserver | None = None,
        tls: LinkTls | None = None,
        metadata: Callable[[], Metadata] = no_metadata,
        shape: FrameShape = UNSHAPED,
    ) -> None:
        self.address = address
        self.observer: StreamObserver = StreamCounters() if observer is None else observer
        self._round_trips_s: deque[float] = deque(maxlen=_NUM_ROUND_TRIPS)
        self.refusal: str | None = None
        self.metadata = metadata
        self.shape = shape
        self.connection = VerifierChannel(address, tls)

    @property
    def round_trip_s(self) -> float | None:
        """The last round trip that a ping saw, None before the first."""
        return self._round_trips_s[-1] if self._round_trips_s else None

    @property
    def least_round_trip_s(self) -> float | None:
        """The shortest of the last ones: in the others this process may have been late."""
        return min(self._round_trips_s, default=None)

    @property
    def is_connected(self) -> bool:
        """Whether the connection stands, as far as is known without traffic; asks for one if not."""
        return self.connection.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY

    @property
    def tls_failure(self) -> str | None:
        """Why no TLS connection comes about, for people; None where that is not what is wrong."""
        return None if self.connection.failure is None else self.connection.failure.text

    @property
    def failure(self) -> str | None:
        """Why the verifier serves nothing, for people, as far as more is known than that it does not answer."""
        return self.tls_failure or self.refusal

    def known(self) -> None:
        """The verifier has let a call of this edge in."""
        if self.refusal is not None:
            logger.info("the verifier at %s knows this edge", self.address)
            self.refusal = None

    def refused(self, error: Unauthenticated) -> None:
        """The verifier has refused a call because of who calls."""
        refusal = f"the verifier at {self.address} refuses this edge: {error}"
        if refusal != self.refusal:
            logger.error("%s", refusal)
            self.refusal = refusal

    async def get_server_info(self, tokenizer_fingerprint: str, deadline_s: float) -> ServerInfo:
        """Asks what is served, again and again until `deadline_s` has passed.

        Raises VerifierUnavailable after the deadline, ModelLoadError when the tokenizers differ, ProtocolError when
        the verifier speaks another version.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + deadline_s
        backoff = Backoff()
        while True:
            try:
                info = await self.ask_server_info(min(INFO_TIMEOUT_S, max(give_up_at - loop.time(), 0.05)))
                break
            except Unauthenticated as refusal:
                error: SpecEdgeError = refusal
                await asyncio.sleep(min(REFUSED_PAUSE_S, max(give_up_at - loop.time(), 0.0)))
            except (VerifierUnavailable, CapacityExceeded) as failure:
                error = failure
            pause_s = backoff.next_s()
            if loop.time() + pause_s >= give_up_at:
                raise VerifierUnavailable(f"no verifier answered at {self.address} within {deadline_s:g} s: {error}")
            logger.info("waiting for the verifier at %s: %s", self.address, error)
            await self._pause(pause_s)
        self.check_tokenizer(info, tokenizer_fingerprint)
        return info

    async def ask_server_info(self, timeout_s: float) -> ServerInfo:
        """Asks once what is served.

        Raises VerifierUnavailable without an answer, Unauthenticated when it refuses this edge, ProtocolError when it
        speaks another version.
        """
        request = pb.GetServerInfoRequest(protocol_version=PROTOCOL_VERSION)
        try:
            async with self.connection.link() as link:
                answer = await stub_of(link).GetServerInfo(request, timeout=timeout_s, metadata=self.metadata())
        except grpc.aio.AioRpcError as call_error:
            error = from_status(call_error.code(), call_error.details(), call_error.trailing_metadata())
            if isinstance(error, Unauthenticated):
                self.refused(error)
            raise await self._explain(error) from call_error
        info = codec.decode_server_info(answer)
        self.connection.works()
        self.known()
        return info

    def check_tokenizer(self, info: ServerInfo, fingerprint: str) -> None:
        """Raises ModelLoadError when the verifier's tokenizer is another one."""
        if info.tokenizer_fingerprint != fingerprint:
            raise ModelLoadError(
                f"tokenizer fingerprints differ: the edge has {fingerprint!r}, the verifier at "
                f"{self.address} with {info.target_model} has {info.tokenizer_fingerprint!r}"
            )

    async def _pause(self, longest_s: float) -> None:
        """Waits; for a verifier that could not be reached, no longer than until it can."""
        if self.is_connected:
            await asyncio.sleep(longest_s)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                await self.connection.channel.channel_ready()

    async def _explain(self, error: SpecEdgeError) -> SpecEdgeError:
        """The same error, or what is wrong with TLS if that is behind it."""
        if not isinstance(error, VerifierUnavailable) or self.is_connected:
            return error
        found = await self.connection.diagnose()
        if found is not None:
            self.observer.handshake_failed(found.reason)
        return error if self.tls_failure is None else VerifierUnavailable(self.tls_failure, error.retry_after_s)

    def open_stream(self, opening: OpenSession, info: ServerInfo) -> "VerifierStream":
        """A stream for one session; enter it to open it."""
        return VerifierStream(self, opening, info)

    async def ping(self, timeout_s: float = PING_TIMEOUT_S) -> Pulse | None:
        """How the verifier is, and how far away; None without an answer.

        A verdict cannot tell that: between a draft and a verdict that could answer it lies the verifier's own waiting.
        """
        loop = asyncio.get_running_loop()
        asked_s = loop.time()
        try:
            async with self.connection.link() as link:
                health: Any = health_pb2_grpc.HealthStub(link.channel)
                call = health.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s, metadata=self.metadata())
                answer = await call
                hint = LoadHint.find(await call.trailing_metadata())
        except grpc.aio.AioRpcError as error:
            logger.debug("verifier at %s: no answer to a ping: %s", self.address, error.code())
            await self._explain(from_status(error.code(), error.details(), error.trailing_metadata()))
            return None
        self.connection.works()
        self._round_trips_s.append(round_trip_s := loop.time() - asked_s)
        self.observer.round_trip(round_trip_s)
        return Pulse(answer.status == health_pb2.HealthCheckResponse.SERVING, hint)

    async def close(self) -> None:
        """Closes the connection and every stream on it."""
        await self.connection.close()
