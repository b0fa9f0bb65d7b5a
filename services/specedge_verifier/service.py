"""The gRPC service: one stream is one session of the engine, and whatever ends the stream ends the session at once."""

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from google.protobuf.message import DecodeError

from specedge.errors import (
    EngineDead,
    InvalidRequest,
    ModelLoadError,
    ProtocolError,
    SpecEdgeError,
    VerifierUnavailable,
)
from specedge.grammar.session_grammars import SessionGrammars
from specedge.verification.v1 import verification_pb2 as pb
from specedge.verification.v1 import verification_pb2_grpc as pb_grpc
from specedge.wire import codec
from specedge.wire.draft_codec import DraftDecoder
from specedge.wire.messages import OpenSession
from specedge.wire.status import to_status
from specedge_verifier.authentication import calling_tenant
from specedge_verifier.bridge import Engine, Outbox

if TYPE_CHECKING:
    from specedge.grammar.state import GrammarState

logger = logging.getLogger(__name__)

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
    """

    open_timeout_s: float = 10.0
    linger_s: float = 1.0
    max_unsent_verdicts: int = 64


class VerificationService(pb_grpc.VerificationServiceServicer):
    """Serves `specedge.verification.v1.VerificationService` from an engine.

    Args:
        engine: runs the sessions.
        options: limits of one stream.
        grammars: compiles what sessions must follow; None: such sessions are refused.
    """

    def __init__(self, engine: Engine, options: StreamOptions, grammars: SessionGrammars | None = None) -> None:
        self._engine = engine
        self._grammars = grammars
        self._options = options
        self._outboxes: set[Outbox] = set()
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
        return codec.encode_server_info(self._engine.info())

    # Reading and writing by hand, not as a generator: a cancelled call then unwinds here at once.
    async def Generate(  # type: ignore[override]  # noqa: N802
        self, request_iterator: object, context: GenerateContext
    ) -> None:
        """Runs one session."""
        outbox = Outbox(self._options.max_unsent_verdicts)
        self._outboxes.add(outbox)
        self._idle.clear()
        try:
            await self._serve(context, outbox)
        except SpecEdgeError as error:
            status = to_status(error)
            logger.info("stream from %s ends with %s: %s", context.peer(), status.code.name, status.details)
            await context.abort(status.code, status.details, status.metadata)
        finally:
            self._outboxes.discard(outbox)
            if not self._outboxes:
                self._idle.set()

    async def _serve(self, context: GenerateContext, outbox: Outbox) -> None:
        try:
            async with asyncio.timeout(self._options.open_timeout_s):
                request = await _read(context)
        except TimeoutError:
            details = f"no OpenSession arrived within {self._options.open_timeout_s:g} s"
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, details)
        if request is None:
            return
        opening = self._check_open(request)
        grammar = None if opening.sampling.grammar is None else await self._follow(opening)
        handle = self._engine.open(opening, outbox, grammar, calling_tenant())
        logger.debug("session %s: opened with handle %d", opening.request_id, handle)
        reader = asyncio.create_task(self._read_drafts(context, outbox, handle, opening))
        try:
            while (message := await outbox.get()) is not None:
                await context.write(codec.encode_response(message))
            self._engine.close(handle)
            await asyncio.wait({reader}, timeout=self._options.linger_s)
        finally:
            self._engine.close(handle)
            reader.cancel()
            await asyncio.wait({reader})

    async def _follow(self, opening: OpenSession) -> "GrammarState":
        """What the session must follow, at its committed tokens."""
        spec = opening.sampling.grammar
        assert spec is not None
        if self._grammars is None:
            raise InvalidRequest("structured output is not served here", spec.param)
        return await asyncio.wrap_future(self._grammars.begin(spec, opening.sampling, opening.committed_ids))

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
        return opening

    async def _read_drafts(self, context: GenerateContext, outbox: Outbox, handle: int, opening: OpenSession) -> None:
        info = self._engine.info()
        decoder = DraftDecoder(info.vocab_size, info.max_nodes_per_message)
        try:
            while (request := await _read(context)) is not None:
                nodes = decoder.decode(request, outbox.num_verdicts_taken)
                if opening.system == "specedge":
                    self._engine.draft(handle, nodes)
            outbox.discard()
        except SpecEdgeError as error:
            outbox.failed(error)
        except Exception:
            logger.exception("session %s: reading failed", opening.request_id)
            outbox.failed(SpecEdgeError("the verifier failed to read from the stream"))
        self._engine.close(handle)


def draining_error() -> VerifierUnavailable:
    """What a stream is told that a verifier shutting down cannot serve."""
    return VerifierUnavailable("the verifier is shutting down; retryable", retry_after_s=1.0)


async def _read(context: GenerateContext) -> pb.GenerateRequest | None:
    """The next request; None when the client has closed its side."""
    try:
        request: object = await context.read()
    except DecodeError as error:
        raise ProtocolError(f"a message cannot be parsed as GenerateRequest: {error}") from error
    return request if isinstance(request, pb.GenerateRequest) else None
