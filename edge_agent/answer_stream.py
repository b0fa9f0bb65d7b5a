"""One answer: drafts go up, verdicts come down, and a broken stream is opened again with what is committed.

The edge holds the truth. Whatever happens to stream or verifier, an answer goes on from its last committed token, and
since every token depends on its position alone, it goes on as if nothing had happened.
"""

import asyncio
import logging
from dataclasses import dataclass, replace

from opentelemetry import trace

from edge_agent.burst_buffer import BurstBuffer
from edge_agent.committed_answer import Burst, CommittedAnswer
from edge_agent.draft_source import DraftSession, DraftSource, NullDraftSource
from edge_agent.draft_trace import DraftTracer
from edge_agent.session_span import SessionOutcome, session_span
from edge_agent.verifier_backoff import Backoff
from edge_agent.verifier_member import Need, VerifierMember
from edge_agent.verifier_pool import VerifierPool
from edge_agent.verifier_stream import VerifierStream
from specedge.drafting.draft_session import DraftRequest
from specedge.errors import (
    CapacityExceeded,
    InvalidRequest,
    ModelLoadError,
    ProtocolError,
    SpecEdgeError,
    Unauthenticated,
    VerifierDraining,
    VerifierUnavailable,
)
from specedge.logs import log_context
from specedge.sampling import SamplingParams
from specedge.wire.messages import DraftNodes, OpenSession, ServerInfo, SessionOpened, Verdict

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One answer wanted.

    Attributes:
        speculate: False asks for plain decoding.
        max_draft_nodes: most live draft nodes; None: as many as edge and verifier allow.
        priority: higher goes first.
        cache_salt: prefixes are shared among requests with the same one only.
        prediction_ids: what the user expects the answer to be; drafted from, and otherwise without effect.
        is_traced: every burst tells what its round looked like.
        committed_ids: the answer's first tokens, which an earlier request had; it goes on after them.
        is_draft_only: the draft model answers alone, without a verifier.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    speculate: bool = True
    max_draft_nodes: int | None = None
    priority: int = 0
    cache_salt: bytes = b""
    prediction_ids: tuple[int, ...] = ()
    is_traced: bool = False
    committed_ids: tuple[int, ...] = ()
    is_draft_only: bool = False


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How long to wait for what.

    Args:
        verifier_deadline_s: how long an answer, or the start of the edge, survives without a verifier.
        stall_timeout_s: an open stream that is silent for so long counts as broken.
        max_buffered_bursts: bursts kept for a slow consumer before its stream and its drafting stop.
    """

    verifier_deadline_s: float = 30.0
    stall_timeout_s: float = 30.0
    max_buffered_bursts: int = 16


class AnswerStream:
    """One answer in the making: its committed tokens, its drafting, its buffer, and whichever stream it has now.

    Args:
        request: what is wanted.
        pool: the verifiers.
        source: of its drafts.
        info: what the verifiers serve.
        options: how long to wait for what.

    Raises:
        VerifierUnavailable: no verifier has what it needs.
    """

    def __init__(
        self,
        request: GenerationRequest,
        pool: VerifierPool,
        source: DraftSource,
        info: ServerInfo,
        options: GenerationOptions,
    ) -> None:
        self.buffer: BurstBuffer[Burst] = BurstBuffer(options.max_buffered_bursts)
        self._request = request
        self._pool = pool
        self.need = Need.of(len(request.prompt_ids), request.sampling, info, request.priority)
        self._info = info
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._answer = CommittedAnswer(len(request.prompt_ids), request.sampling, request.committed_ids)
        self._away_since: float | None = self._loop.time()  # None while verdicts come
        self._was_opened = False
        self._drafter_id = source.drafter_id
        self._epoch = 0
        self._num_streams = 0
        self._tracer = (
            DraftTracer(request.prompt_ids + request.committed_ids, info.max_live_nodes, self._loop.time)
            if request.is_traced
            else None
        )
        self._tried: set[VerifierMember] = set()  # since the last token
        self._last: VerifierMember | None = None  # the last one that admitted it
        # Exists before the drafting begins, so that not one node of epoch 0 is lost.
        self._verifier, self._opened = self._choose()
        self._is_chosen = True
        # None until the next one has been admitted, or the first one where it has to wait: drafts may be for nothing.
        self._stream: VerifierStream | None = None if self._verifier.is_full(self._loop.time()) else self._opened
        self._draft_request = DraftRequest(
            session_id=request.request_id,
            committed=request.prompt_ids + request.committed_ids,
            prompt_len=len(request.prompt_ids),
            sampling=request.sampling,
            eos_ids=info.eos_ids,
            max_live_nodes=min(info.max_live_nodes, request.max_draft_nodes or info.max_live_nodes),
            prediction=request.prediction_ids,
        )
        self._drafts: DraftSession = source.open(self._draft_request, self._on_nodes)
        if self._stream is None:
            self._drafts.pause()

    async def run(self) -> None:
        """Runs the answer to its end; whatever ends it reaches the consumer through the buffer."""
        request, model = self._request, self._info.target_model
        span_of = session_span(
            request.request_id, model, len(request.prompt_ids), request.sampling, lambda: self._outcome
        )
        try:
            with log_context(session_id=request.request_id), span_of as span:
                await self._run_streams(span)
            self.buffer.finish()
        except SpecEdgeError as error:
            self.buffer.fail(error)
        except asyncio.CancelledError:
            self.buffer.fail(VerifierUnavailable("the channel to the verifier was closed"))
            raise
        except Exception:
            logger.exception("session %s: failed", self._request.request_id)
            self.buffer.fail(SpecEdgeError("the edge failed to go on with the answer"))

    @property
    def _outcome(self) -> SessionOutcome:
        return SessionOutcome(len(self._answer.token_ids), self._answer.finish_reason, self._num_streams)

    @property
    def heard_s(self) -> float:
        """When the verifier last said something, in seconds of the event loop."""
        return self._opened.heard_s

    def leave(self, error: SpecEdgeError) -> None:
        """Goes on over another stream; `error` says why."""
        self._opened.leave(error)

    def close_drafts(self) -> None:
        """Ends drafting for this answer."""
        self._drafts.close()

    async def _run_streams(self, span: trace.Span) -> None:
        backoff, request_id = Backoff(), self._request.request_id
        while True:
            num_committed = len(self._answer.token_ids)
            try:
                if not self._is_chosen:
                    self._verifier, self._opened = self._choose()
                self._is_chosen = False
                await self._run_stream(self._verifier, self._opened)
                return
            except SpecEdgeError as error:
                failure = error
            if len(self._answer.token_ids) > num_committed:
                backoff.reset()
                self._tried.clear()
            self._check_retryable(failure)
            self._stream = None
            self._drafts.pause()
            self._pool.observer.broken(str(failure))
            span.add_event("stream broken", {"reason": str(failure)})
            pause_s = self._pause_s(failure, backoff)
            if self._remaining_s() <= pause_s:
                self._pool.observer.gave_up(str(failure))
                raise VerifierUnavailable(
                    f"no verifier at {self._pool.address} went on with the answer within "
                    f"{self._options.verifier_deadline_s:g} s: {self._pool.failure or failure}"
                )
            where = self._verifier.address
            logger.info("session %s: left %s, opening again in %.2f s: %s", request_id, where, pause_s, failure)
            await asyncio.sleep(pause_s)

    def _pause_s(self, failure: SpecEdgeError, backoff: Backoff) -> float:
        """Until the next attempt: none away from a draining verifier, a short one to another, a growing one else."""
        self._tried.add(self._verifier)
        if not self._has_other:
            return backoff.next_s()
        return 0.0 if isinstance(failure, VerifierDraining) else self._pool.spread_s()

    @property
    def _has_other(self) -> bool:
        return self._pool.has_other(self.need, {*self._tried, self._verifier})

    async def _run_stream(self, verifier: VerifierMember, stream: VerifierStream) -> None:
        """Runs one stream to the end of the answer; raises SpecEdgeError when it ends before."""
        stream.on_draining = lambda: self._told_to_move(verifier, stream)
        try:
            async with stream:
                verifier.sessions.add(self)
                await self._follow(verifier, stream)
        except SpecEdgeError as error:
            verifier.broke(error, self._loop.time(), self.need)
            raise
        finally:
            verifier.sessions.discard(self)

    def _told_to_move(self, verifier: VerifierMember, stream: VerifierStream) -> None:
        """The verifier drains: the answer goes on elsewhere, or stays for as long as there is nowhere else to go."""
        error = VerifierDraining(f"the verifier at {verifier.address} drains")
        if self._pool.has_other(self.need, {verifier}):
            stream.leave(error)
        else:
            verifier.broke(error, self._loop.time())

    async def _follow(self, verifier: VerifierMember, stream: VerifierStream) -> None:
        self._num_streams += 1
        message = await stream.read(self._remaining_s())
        if not isinstance(message, SessionOpened):
            raise VerifierUnavailable("the verifier did not begin with SessionOpened")
        self._was_opened = True
        try:
            self._answer.opened(message)
        except ProtocolError as error:
            raise VerifierUnavailable(str(error)) from error
        verifier.opened()
        if self._last is not None and self._last is not verifier:
            self._pool.observer.failed_over()
        self._last = verifier
        self.buffer.start()
        if self._stream is None:
            self._stream = stream
            if self._tracer is not None:
                self._tracer.restart()
            self._epoch = self._drafts.restart()
            self._drafts.resume()
        while not self._answer.finish_reason:
            await self._take_verdict(stream)

    async def _take_verdict(self, stream: VerifierStream) -> None:
        message = await stream.read(self._options.stall_timeout_s)
        if not isinstance(message, Verdict):
            raise VerifierUnavailable("the verifier ended the stream before the answer")
        try:
            burst = self._answer.append(message)
        except ProtocolError as error:
            raise VerifierUnavailable(str(error)) from error
        if self._tracer is not None:
            trace = self._tracer.verdict(message, self._verifier.client.round_trip_s)
            burst = replace(burst, stats=replace(burst.stats, round=trace))
        self._away_since = None
        self._drafts.verdict(burst.token_ids)
        self.buffer.put(burst)
        if self.buffer.is_full and not burst.finish_reason:
            self._drafts.pause()
            await self.buffer.wait_room()
            self._drafts.resume()

    def _check_retryable(self, error: SpecEdgeError) -> None:
        """Returns if the answer may go on over another stream; raises what the user is to see if not."""
        if self._away_since is None:
            self._away_since = self._loop.time()
        if isinstance(error, VerifierUnavailable):
            return
        # A token that was replaced is sent by the next stream; a tenant that has too much now may have less soon; a
        # verifier that serves another model for now may serve this one again.
        if isinstance(error, CapacityExceeded | Unauthenticated | ModelLoadError) and self._was_opened:
            return
        if isinstance(error, CapacityExceeded | Unauthenticated | ModelLoadError) and self._has_other:
            return
        if isinstance(error, ProtocolError) and self._drafter_id:
            logger.error("session %s: drafts were refused, going on without: %s", self._request.request_id, error)
            self._pool.observer.drafts_refused()
            self._stop_drafting()
            return
        if isinstance(error, InvalidRequest | CapacityExceeded):
            raise error
        raise VerifierUnavailable(f"the verifier at {self._verifier.address} refuses this edge: {error}") from error

    def _stop_drafting(self) -> None:
        self._drafts.close()
        self._drafter_id = ""
        self._drafts = NullDraftSource().open(self._draft_request, self._on_nodes)

    def _on_nodes(self, epoch: int, nodes: DraftNodes) -> None:
        """Sends nodes of the present epoch; a later one is being begun by `restart` at this moment."""
        if self._stream is not None and self._drafter_id and epoch >= self._epoch and self._verifier.drafts:
            self._stream.send(nodes)
            if self._tracer is not None:
                self._tracer.sent(nodes)

    def _choose(self) -> tuple[VerifierMember, VerifierStream]:
        """A verifier and the stream to be opened there."""
        verifier = self._pool.choose(self.need, self._tried)
        if verifier is None or verifier.info is None:
            raise VerifierUnavailable(self._pool.failure or f"no verifier at {self._pool.address} has what it needs")
        opening = OpenSession(
            request_id=self._request.request_id,
            prompt_ids=self._request.prompt_ids,
            committed_ids=tuple(self._answer.token_ids),
            sampling=self._answer.remaining_sampling,
            tokenizer_fingerprint=self._info.tokenizer_fingerprint,
            drafter_id=self._drafter_id,
            system="specedge" if self._drafter_id and verifier.drafts else "autoregressive",
            priority=self._request.priority,
            cache_salt=self._request.cache_salt,
            target_model=self._info.target_model,
        )
        return verifier, verifier.client.open_stream(opening, verifier.info)

    def _remaining_s(self) -> float:
        """Time left until the answer is given up."""
        if self._away_since is None:
            return self._options.verifier_deadline_s
        return max(self._options.verifier_deadline_s - (self._loop.time() - self._away_since), 0.0)
