"""The gRPC service: one stream is one session of the engine, and whatever ends the stream ends the session at once."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from google.protobuf.message import DecodeError
from opentelemetry import trace

from specedge.errors import (
    EngineDead,
    InvalidRequest,
    ModelLoadError,
    ProtocolError,
    SpecEdgeError,
    VerifierDraining,
)
from specedge.verification.v1 import verification_pb2 as pb
from specedge.verification.v1 import verification_pb2_grpc as pb_grpc
from specedge.wire import codec
from specedge.wire.call_context import incoming_call
from specedge.wire.channel import FRAMING_BYTES
from specedge.wire.draft_codec import DraftDecoder
from specedge.wire.messages import OpenSession, Verdict
from specedge.wire.shaping import UNSHAPED, Cadence, FrameShape, is_padding
from specedge.wire.status import to_status
from specedge_verifier.authentication import calling_tenant
from specedge_verifier.bridge import Engine, Outbox
from specedge_verifier.followed_grammars import Grammars
from specedge_verifier.session_record import session_record
from specedge_verifier.stream_observer import NobodyWatches, StreamObserver

if TYPE_CHECKING:
    from specedge.grammar.state import GrammarState

logger = logging.getLogger(__name__)

PACED_LEAD_S = 1e-3
PACED_LEAD_STEPS = 2.0
"""A paced session waits for a step that has begun without it, and for its own, before its verdict can leave."""

TELL_EVERY_S = 0.02
TELL_WITHIN_S = 1.0
"""Sessions of a verifier that drains are told one by one, so that they do not all prefill elsewhere at once."""

GENERATE = f"{pb.DESCRIPTOR.services_by_name['VerificationService'].full_name}/Generate"

GenerateContext = grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse]
InfoContext = grpc.aio.ServicerContext[pb.GetServerInfoRequest, pb.GetServerInfoResponse]


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Limits of one stream.

    Args:
        open_timeout_s: how long a new stream may stay silent.
        linger_s: how long the stream of an ended session waits for the client to close it. A client that wrote to a
            stream closed before it would see a failure in place of what it has not read yet.
        max_unsent_verdicts: verdicts waiting for a slow reader before its session counts as congested.
        shape: lengths and times of messages. Where they are paced, a verdict is computed shortly before it can leave:
            drafts that have come by then count.
    """

    open_timeout_s: float = 10.0
    linger_s: float = 10.0
    max_unsent_verdicts: int = 64
    shape: FrameShape = UNSHAPED


class VerificationService(pb_grpc.VerificationServiceServicer):
    """Serves `specedge.verification.v1.VerificationService` from an engine.

    Args:
        engine: runs the sessions.
        options: limits of one stream.
        grammars: compiles what sessions must follow; None: such sessions are refused.
        observer: told about bytes and refusals.
        on_call: told the address of each call's peer.
    """

    def __init__(
        self,
        engine: Engine,
        options: StreamOptions,
        grammars: Grammars | None = None,
        observer: StreamObserver | None = None,
        on_call: Callable[[str], None] | None = None,
    ) -> None:
        self._engine = engine
        self._observer: StreamObserver = NobodyWatches() if observer is None else observer
        self._on_call = on_call
        self._grammars = grammars
        self._options = options
        self._outboxes: set[Outbox] = set()
        self._movable: set[Outbox] = set()  # those whose edges know what Draining means
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_draining = False

    @property
    def num_streams(self) -> int:
        """Streams that are open."""
        return len(self._outboxes)

    def drain(self) -> None:
        """Refuses new sessions from now on."""
        self._is_draining = True
        self._engine.drain()

    async def tell_draining(self) -> int:
        """Tells the edges that their sessions had better go on elsewhere; returns how many were told."""
        return await tell_draining(self._movable)

    def abort_all(self, error: SpecEdgeError) -> None:
        """Ends every stream with `error`."""
        for outbox in self._outboxes:
            outbox.failed(error)

    async def wait_idle(self) -> None:
        """Returns once no stream is open."""
        await self._idle.wait()

    async def GetServerInfo(  # noqa: N802
        self, request: pb.GetServerInfoRequest, context: InfoContext
    ) -> pb.GetServerInfoResponse:
        """Says what is served."""
        if self._on_call is not None:
            self._on_call(context.peer())
        return codec.encode_server_info(self._engine.info())

    # Reading and writing by hand, not as a generator: a cancelled call then unwinds here at once.
    async def Generate(  # type: ignore[override]  # noqa: N802
        self, request_iterator: object, context: GenerateContext
    ) -> None:
        """Runs one session."""
        if self._on_call is not None:
            self._on_call(context.peer())
        outbox = Outbox(self._options.max_unsent_verdicts, is_paced=self._options.shape.interval_s > 0)
        self._outboxes.add(outbox)
        self._idle.clear()
        try:
            with incoming_call(GENERATE, context.invocation_metadata()) as span:
                await self._answer(context, outbox, span)
        finally:
            self._outboxes.discard(outbox)
            self._movable.discard(outbox)
            if not self._outboxes:
                self._idle.set()

    async def _answer(self, context: GenerateContext, outbox: Outbox, span: trace.Span) -> None:
        try:
            await self._serve(context, outbox, span)
        except SpecEdgeError as error:
            status = to_status(error)
            logger.info("stream from %s ends with %s: %s", context.peer(), status.code.name, status.details)
            self._observer.rejected(status.code.name)
            span.set_status(trace.StatusCode.ERROR, f"{status.code.name}: {status.details}")
            await context.abort(status.code, status.details, status.metadata)

    async def _serve(self, context: GenerateContext, outbox: Outbox, span: trace.Span) -> None:
        try:
            async with asyncio.timeout(self._options.open_timeout_s):
                request = await self._read(context)
        except TimeoutError:
            self._observer.rejected(grpc.StatusCode.DEADLINE_EXCEEDED.name)
            details = f"no OpenSession arrived within {self._options.open_timeout_s:g} s"
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, details)
        except asyncio.CancelledError:
            self._observer.rejected(grpc.StatusCode.CANCELLED.name)
            raise
        if request is None:
            self._observer.rejected(grpc.StatusCode.CANCELLED.name)
            return
        opening = self._check_open(request)
        grammar = None if opening.sampling.grammar is None else await self._follow(opening)
        with session_record(span, opening) as record:
            if opening.tells_progress:
                outbox.follow_progress(opening.round_trip_s)
            handle = self._engine.open(opening, outbox, grammar, calling_tenant())
            if opening.takes_draining:
                self._movable.add(outbox)
            reader = asyncio.create_task(self._read_drafts(context, outbox, handle, opening))
            try:
                cadence, lead_s = self._options.shape.cadence(), 0.0
                while True:
                    if cadence is not None and not await _has_turn(outbox, cadence, lead_s, opening):
                        await self._write(context, pb.GenerateResponse())
                        continue
                    if not outbox.is_ready:
                        await outbox.wait()
                    if (message := outbox.take()) is None:
                        break
                    if isinstance(message, Verdict):
                        lead_s = PACED_LEAD_S + PACED_LEAD_STEPS * message.step_us * 1e-6
                    await self._write(context, codec.encode_response(message))
                    record.sent(message)
                self._engine.close(handle)
                await asyncio.wait({reader}, timeout=self._options.linger_s)
            finally:
                self._engine.close(handle)
                reader.cancel()
                await asyncio.wait({reader})

    async def _write(self, context: GenerateContext, response: pb.GenerateResponse) -> None:
        self._options.shape.pad(response)
        await context.write(response)
        self._observer.wire_bytes("down", response.ByteSize() + FRAMING_BYTES)

    async def _follow(self, opening: OpenSession) -> "GrammarState | None":
        """What the session must follow, at its committed tokens; None where the engine's process sees to that."""
        spec = opening.sampling.grammar
        assert spec is not None
        if self._grammars is None:
            raise InvalidRequest("structured output is not served here", spec.param)
        grammar: GrammarState | None = await asyncio.wrap_future(
            self._grammars.begin(spec, opening.sampling, opening.committed_ids)
        )
        return grammar

    def _check_open(self, request: pb.GenerateRequest) -> OpenSession:
        if not self._engine.is_healthy:
            raise EngineDead("the engine has died; this verifier is being replaced")
        if self._is_draining:
            raise draining_error()
        info = self._engine.info()
        opening = codec.decode_open(request, info.vocab_size)
        if opening.tokenizer_fingerprint != info.tokenizer_fingerprint:
            raise ModelLoadError(
                f"tokenizer fingerprints differ: the edge has {opening.tokenizer_fingerprint!r}, "
                f"the verifier of {info.target_model} has {info.tokenizer_fingerprint!r}"
            )
        if opening.target_model not in ("", info.target_model):
            asked = opening.target_model[: codec.MAX_NAME_CHARS]
            raise ModelLoadError(
                f"target models differ: the answer is one of {asked!r}, this verifier serves {info.target_model}"
            )
        return opening

    async def _read_drafts(self, context: GenerateContext, outbox: Outbox, handle: int, opening: OpenSession) -> None:
        info = self._engine.info()
        decoder = DraftDecoder(info.vocab_size, info.max_nodes_per_message)
        try:
            while (request := await self._read(context)) is not None:
                if is_padding(request):
                    continue
                nodes = decoder.decode(request, outbox.num_verdicts_taken)
                outbox.seen(nodes.num_verdicts_seen)
                if opening.system == "specedge" and nodes.token_ids:
                    self._engine.draft(handle, nodes)
            outbox.discard()
        except SpecEdgeError as error:
            outbox.failed(error)
        except Exception:
            logger.exception("session %s: reading failed", opening.request_id)
            outbox.failed(SpecEdgeError("the verifier failed to read from the stream"))
        self._engine.close(handle)

    async def _read(self, context: GenerateContext) -> pb.GenerateRequest | None:
        """The next request; None when the client has closed its side."""
        try:
            request: object = await context.read()
        except DecodeError as error:
            raise ProtocolError(f"a message cannot be parsed as GenerateRequest: {error}") from error
        if not isinstance(request, pb.GenerateRequest):
            return None
        self._observer.wire_bytes("up", request.ByteSize() + FRAMING_BYTES)
        return request


async def _has_turn(outbox: Outbox, cadence: Cadence, lead_s: float, opening: OpenSession) -> bool:
    """Waits for the time of the next message, and before it lets the session go on; False: padding takes its place."""
    await cadence.before_tick(lead_s)
    outbox.release()
    if not opening.takes_padding:
        await outbox.wait()
    await cadence.tick()
    return outbox.is_ready


async def tell_draining(outboxes: Iterable[Outbox]) -> int:
    """Tells streams one after the other that they had better go on elsewhere; returns how many were told."""
    waiting = [*outboxes]
    pause_s = min(TELL_EVERY_S, TELL_WITHIN_S / max(len(waiting), 1))
    for outbox in waiting:
        outbox.draining()
        await asyncio.sleep(pause_s)
    return len(waiting)


def draining_error() -> VerifierDraining:
    """What a stream is told that a verifier shutting down cannot serve."""
    return VerifierDraining("the verifier is shutting down; retryable", retry_after_s=1.0)
