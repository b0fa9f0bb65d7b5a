"""One session's stream to a verifier: drafts up, verdicts down."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import grpc

from edge_agent.verifier_channel import Link
from specedge.errors import (
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
from specedge.wire.messages import (
    PADDING,
    PROGRESS,
    TELL_WITHIN_S,
    DraftNodes,
    Draining,
    OpenSession,
    ServerInfo,
    SessionOpened,
    Verdict,
)
from specedge.wire.shaping import is_padding
from specedge.wire.status import from_status

if TYPE_CHECKING:
    from edge_agent.verifier_client import VerifierClient

T = TypeVar("T")

STATUS_PATIENCE_S = 2.0
FAILED_WRITE_DETAILS = "Internal error from Core"
"""What grpc.aio calls the end of a stream whose last write failed, often because the verifier had ended it."""

GenerateCall = grpc.aio.StreamStreamCall[pb.GenerateRequest, pb.GenerateResponse]


class VerifierStream:
    """One session's stream. Leaving it cancels the session on the verifier.

    Attributes:
        on_draining: called when the verifier says that the session had better go on elsewhere; may call `leave`.
        heard_s: when the last message came, or it was opened, in seconds of the event loop.
    """

    def __init__(self, client: "VerifierClient", opening: OpenSession, info: ServerInfo) -> None:
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
        self._num_told = 0  # of these, as the verifier was told
        self._tells_progress = PROGRESS in info.capabilities
        self._telling: asyncio.TimerHandle | None = None
        self._round_began_at: float | None = None
        self._verifier_error: SpecEdgeError | None = None
        self._has_status = asyncio.Event()
        self._left: SpecEdgeError | None = None
        self.on_draining: Callable[[], None] = lambda: None
        self.heard_s = 0.0

    async def __aenter__(self) -> Self:
        self._opened_at = self.heard_s = asyncio.get_running_loop().time()
        self._link = self._client.connection.take()
        self._call: GenerateCall = stub_of(self._link).Generate(
            metadata=(*self._client.metadata(), *outgoing_metadata())
        )
        self._responses: AsyncIterator[pb.GenerateResponse] = aiter(self._call)
        self._call.add_done_callback(self._keep_status)
        self._writer = asyncio.create_task(self._write())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._telling is not None:
            self._telling.cancel()
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

        Raises VerifierUnavailable for a broken, silent or malformed stream, else what the verifier's status says, or
        what `leave` was given.
        """
        while isinstance(message := await self._receive(timeout_s), Draining):
            self.on_draining()
            if self._left is not None:
                raise self._left
        return message

    async def _receive(self, timeout_s: float) -> SessionOpened | Verdict | Draining | None:
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
        """The next message that is not mere padding, or the end.

        By iteration: `read()` would fail as soon as a write has, and with it what the verifier sent before it ended.
        """
        async for response in self._responses:
            if not (isinstance(response, pb.GenerateResponse) and is_padding(response)):
                return response
            self._observer.received(response.ByteSize() + FRAMING_BYTES)
        return grpc.aio.EOF

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

    def _observe(self, message: SessionOpened | Verdict | Draining, num_bytes: int) -> None:
        now = asyncio.get_running_loop().time()
        self.heard_s = now
        self._observer.received(num_bytes)
        if isinstance(message, SessionOpened):
            self._client.known()
            self._observer.opened(message, now - self._opened_at, len(self._opening.committed_ids))
            return
        if isinstance(message, Draining):
            return
        self._num_verdicts += 1
        if self._tells_progress and self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(TELL_WITHIN_S, self._tell)
        began_at, self._round_began_at = self._round_began_at, None
        self._observer.verdict(message, None if began_at is None else now - began_at)

    async def _write(self) -> None:
        # A write fails only when the call has ended; reading tells why.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            opening = replace(
                self._opening,
                takes_padding=True,
                takes_draining=True,
                tells_progress=self._tells_progress,
                round_trip_s=self._client.least_round_trip_s,
            )
            await self._send(codec.encode_open(opening))
            cadence = self._shape.cadence()
            while True:
                if cadence is None or not self._sends_padding:
                    await self._has_queued.wait()
                if cadence is not None:
                    await cadence.tick()
                self._has_queued.clear()
                queued, self._queued = self._queued, []
                if not queued:
                    if self._tells_progress and self._num_told < self._num_verdicts:
                        await self._send(self._progress())
                    elif cadence is not None:
                        await self._send(pb.GenerateRequest())
                    continue
                self._num_told = self._num_verdicts
                for index, request in enumerate(self._encoder.encode(coalesce(queued, self._num_verdicts))):
                    if index and cadence is not None:
                        await cadence.tick()
                    await self._send(request)
                    if self._round_began_at is None:
                        self._round_began_at = asyncio.get_running_loop().time()

    def _tell(self) -> None:
        self._telling = None
        if self._num_told < self._num_verdicts:
            self._has_queued.set()

    def _progress(self) -> pb.GenerateRequest:
        """DraftNodes without nodes."""
        self._num_told = self._num_verdicts
        return pb.GenerateRequest(draft_nodes=pb.DraftNodes(num_verdicts_seen=self._num_verdicts))

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
