"""The gRPC client: one shared connection to a verifier, one stream per generation."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from edge_agent.stream_observer import StreamCounters, StreamObserver
from edge_agent.verifier_backoff import Backoff
from edge_agent.verifier_channel import Link, LinkTls, VerifierChannel
from specedge.errors import (
    CapacityExceeded,
    ModelLoadError,
    ProtocolError,
    SpecEdgeError,
    Unauthenticated,
    VerifierUnavailable,
)
from specedge.verification.v1 import verification_pb2 as pb
from specedge.verification.v1 import verification_pb2_grpc as pb_grpc
from specedge.wire import codec
from specedge.wire.call_context import outgoing_metadata
from specedge.wire.channel import FRAMING_BYTES
from specedge.wire.draft_codec import DraftEncoder
from specedge.wire.load_hint import LoadHint
from specedge.wire.messages import (
    PADDING,
    PROTOCOL_VERSION,
    DraftNodes,
    OpenSession,
    ServerInfo,
    SessionOpened,
    Verdict,
)
from specedge.wire.shaping import UNSHAPED, FrameShape, is_padding
from specedge.wire.status import Metadata, from_status

T = TypeVar("T")

logger = logging.getLogger(__name__)

INFO_TIMEOUT_S = 5.0
PING_TIMEOUT_S = 5.0
REFUSED_PAUSE_S = 5.0
"""How long an edge waits that the verifier does not know, until it asks again: only a person can change that."""

STATUS_PATIENCE_S = 0.5
FAILED_WRITE_DETAILS = "Internal error from Core"
"""What grpc.aio calls the end of a stream whose last write failed, often because the verifier had ended it."""

GenerateCall = grpc.aio.StreamStreamCall[pb.GenerateRequest, pb.GenerateResponse]


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
        round_trip_s: the last round trip that a ping saw, None before the first.
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
        self.round_trip_s: float | None = None
        self.refusal: str | None = None
        self.metadata = metadata
        self.shape = shape
        self.connection = VerifierChannel(address, tls)

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
        self.round_trip_s = loop.time() - asked_s
        self.observer.round_trip(self.round_trip_s)
        return Pulse(answer.status == health_pb2.HealthCheckResponse.SERVING, hint)

    async def close(self) -> None:
        """Closes the connection and every stream on it."""
        await self.connection.close()


class VerifierStream:
    """One session's stream. Leaving it cancels the session on the verifier."""

    def __init__(self, client: VerifierClient, opening: OpenSession, info: ServerInfo) -> None:
        self._client = client
        self._opening = opening
        self._vocab_size = info.vocab_size
        self._observer = client.observer
        self._shape = client.shape
        self._sends_padding = PADDING in info.capabilities
        self._encoder = DraftEncoder(self._shape.max_nodes(info.max_nodes_per_message))
        self._queued: list[DraftNodes] = []
        self._has_queued = asyncio.Event()
        self._num_verdicts = 0
        self._round_began_at: float | None = None
        self._verifier_error: SpecEdgeError | None = None
        self._has_status = asyncio.Event()
        self._left: SpecEdgeError | None = None
        self.heard_s = 0.0  # when the last message came, or it was opened

    async def __aenter__(self) -> Self:
        self._opened_at = self.heard_s = asyncio.get_running_loop().time()
        self._link = self._client.connection.take()
        self._call: GenerateCall = stub_of(self._link).Generate(
            metadata=(*self._client.metadata(), *outgoing_metadata())
        )
        self._call.add_done_callback(self._keep_status)
        self._writer = asyncio.create_task(self._write())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.cancel()
        self._writer.cancel()
        try:
            await asyncio.wait({self._writer})
        finally:
            await self._client.connection.give_back(self._link)

    def leave(self, error: SpecEdgeError) -> None:
        """Ends the session on this verifier: whoever reads gets `error`."""
        self._left = error
        self._call.cancel()

    def send(self, nodes: DraftNodes) -> None:
        """Queues nodes; whatever is queued when the network is free leaves together."""
        self._queued.append(nodes)
        self._has_queued.set()

    async def read(self, timeout_s: float) -> SessionOpened | Verdict | None:
        """The next message; None when the verifier has ended the stream properly.

        Raises VerifierUnavailable for a broken, silent or malformed stream, else what the verifier's status says.
        """
        try:
            async with asyncio.timeout(timeout_s):
                response: object = await self._read()
        except TimeoutError as error:
            raise VerifierUnavailable(f"the verifier sent nothing for {timeout_s:g} s") from error
        except grpc.aio.AioRpcError as error:
            raise await self._error_of(error) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._left is None or task is None or task.cancelling():
                raise
            raise self._left from None
        if response is grpc.aio.EOF:
            return None
        if not isinstance(response, pb.GenerateResponse):
            raise VerifierUnavailable("the verifier sent a message that cannot be parsed")
        try:
            message = codec.decode_response(response, self._vocab_size)
        except ProtocolError as error:
            raise VerifierUnavailable(f"the verifier sent a malformed message: {error}") from error
        self._observe(message, response.ByteSize() + FRAMING_BYTES)
        return message

    async def _read(self) -> object:
        """The next message that is not mere padding, or the end."""
        while isinstance(response := await self._call.read(), pb.GenerateResponse) and is_padding(response):
            self._observer.received(response.ByteSize() + FRAMING_BYTES)
        return response

    def _keep_status(self, call: GenerateCall) -> None:
        """Runs whenever the call's status is set: a failed write may set another one before or after the verifier's."""
        code, details = _value_of(call.code()), _value_of(call.details())
        if code is grpc.StatusCode.OK or details == FAILED_WRITE_DETAILS or self._verifier_error is not None:
            return
        self._verifier_error = from_status(code, details, _value_of(call.trailing_metadata()))
        self._has_status.set()

    async def _error_of(self, error: grpc.aio.AioRpcError) -> SpecEdgeError:
        """What the verifier ended the stream with, as far as it said."""
        if error.details() == FAILED_WRITE_DETAILS:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._has_status.wait(), STATUS_PATIENCE_S)
        found = self._verifier_error or from_status(error.code(), error.details(), error.trailing_metadata())
        if isinstance(found, Unauthenticated):
            self._client.refused(found)
        if isinstance(found, VerifierUnavailable) and self._client.tls_failure is not None:
            return VerifierUnavailable(self._client.tls_failure, found.retry_after_s)
        return found

    def _observe(self, message: SessionOpened | Verdict, num_bytes: int) -> None:
        now = asyncio.get_running_loop().time()
        self.heard_s = now
        self._observer.received(num_bytes)
        if isinstance(message, SessionOpened):
            self._client.known()
            self._observer.opened(message, now - self._opened_at, len(self._opening.committed_ids))
            return
        self._num_verdicts += 1
        began_at, self._round_began_at = self._round_began_at, None
        self._observer.verdict(message, None if began_at is None else now - began_at)

    async def _write(self) -> None:
        # A write fails only when the call has ended; reading tells why.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._send(codec.encode_open(replace(self._opening, takes_padding=True)))
            cadence = self._shape.cadence()
            while True:
                if cadence is None or not self._sends_padding:
                    await self._has_queued.wait()
                if cadence is not None:
                    await cadence.tick()
                self._has_queued.clear()
                queued, self._queued = self._queued, []
                if not queued:
                    await self._send(pb.GenerateRequest())
                    continue
                for index, request in enumerate(self._encoder.encode(coalesce(queued, self._num_verdicts))):
                    if index and cadence is not None:
                        await cadence.tick()
                    await self._send(request)
                    if self._round_began_at is None:
                        self._round_began_at = asyncio.get_running_loop().time()

    async def _send(self, request: pb.GenerateRequest) -> None:
        self._shape.pad(request)
        await self._call.write(request)
        self._observer.sent(request.ByteSize() + FRAMING_BYTES, len(request.draft_nodes.token_ids))


def coalesce(parts: list[DraftNodes], num_verdicts_seen: int) -> DraftNodes:
    """Nodes of several moments as one message's worth, in order."""
    if len(parts) == 1:
        return replace(parts[0], num_verdicts_seen=num_verdicts_seen)
    return DraftNodes(
        token_ids=[token_id for part in parts for token_id in part.token_ids],
        parents=[parent for part in parts for parent in part.parents],
        scores=[score for part in parts for score in part.scores],
        num_verdicts_seen=num_verdicts_seen,
    )


def stub_of(link: Link) -> "pb_grpc.VerificationServiceAsyncStub":
    """The verification service at the other end."""
    return pb_grpc.VerificationServiceStub(link.channel)


def _value_of(ready: Awaitable[T]) -> T:
    """The result of an awaitable that has no need to wait."""
    try:
        next(ready.__await__())
    except StopIteration as stop:
        value: T = stop.value
        return value
    raise AssertionError("a call that has ended knows its status")
