"""One answer: drafts go up, verdicts come down, and a broken stream is opened again with what is committed.

The edge holds the truth. Whatever happens to stream or verifier, an answer goes on from its last committed token, and
since every token depends on its position alone, it goes on as if nothing had happened.
"""

import asyncio
import logging
from dataclasses import dataclass, field, replace

from opentelemetry import trace

from edge_agent.burst_buffer import BurstBuffer
from edge_agent.draft_source import DraftSession, DraftSource, NullDraftSource
from edge_agent.draft_trace import DraftTracer, RoundTrace
from edge_agent.session_span import SessionOutcome, session_span
from edge_agent.verifier_client import Backoff, VerifierClient, VerifierStream
from specedge.drafting.draft_session import DraftRequest
from specedge.errors import (
    CapacityExceeded,
    InvalidRequest,
    ProtocolError,
    SpecEdgeError,
    Unauthenticated,
    VerifierUnavailable,
)
from specedge.logs import log_context
from specedge.sampling import SamplingParams
from specedge.wire.messages import (
    DraftNodes,
    FinishReason,
    OpenSession,
    ServerInfo,
    SessionOpened,
    TokenLogprob,
    Verdict,
)

logger = logging.getLogger(__name__)

_PLAIN = SamplingParams()


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


@dataclass(frozen=True, slots=True)
class BurstStats:
    """What one verification cost: waiting and computing on the verifier in microseconds, draft nodes verified.

    An answer's first burst also tells how many prompt tokens the verifier's prefix cache had. Each burst of a traced
    answer has its round.
    """

    queue_us: int = 0
    step_us: int = 0
    num_nodes_verified: int = 0
    num_cached_tokens: int | None = None
    round: RoundTrace | None = None


@dataclass(frozen=True, slots=True)
class Burst:
    """Tokens that arrived together. `num_accepted` of them had been drafted; the last burst has a finish reason.

    Where they were asked for, `logprobs` are the tokens' and come with each burst; `prompt_logprobs`, of all tokens of
    the prompt but the first, come with the first burst.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    num_accepted: int
    stats: BurstStats = field(default_factory=BurstStats)
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


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
    max_buffered_bursts: int = 64


class CommittedAnswer:
    """The tokens committed so far. A verdict must continue them exactly."""

    def __init__(self, num_prompt_tokens: int, sampling: SamplingParams = _PLAIN) -> None:
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason = ""
        self._num_prompt_tokens = num_prompt_tokens
        self._num_cached_tokens: int | None = None
        self._sampling = sampling
        self._prompt_logprobs: tuple[TokenLogprob, ...] | None = None

    @property
    def remaining_sampling(self) -> SamplingParams:
        """What the next stream is asked for: log-probabilities of a prompt are told once."""
        if self._prompt_logprobs is None:
            return self._sampling
        return replace(self._sampling, num_prompt_logprobs=None)

    def opened(self, message: SessionOpened) -> None:
        """The session was admitted; its prefix cache counts for the first burst of the answer only.

        Raises:
            ProtocolError: log-probabilities of the prompt are missing.
        """
        self._num_cached_tokens = None if self.token_ids else message.num_cached_tokens
        if self._sampling.num_prompt_logprobs is not None and self._prompt_logprobs is None:
            if len(message.prompt_logprobs) != self._num_prompt_tokens - 1:
                told = f"{len(message.prompt_logprobs)} tokens of a prompt of {self._num_prompt_tokens}"
                raise ProtocolError(f"the verifier told log-probabilities of {told}")
            self._prompt_logprobs = message.prompt_logprobs

    @property
    def next_position(self) -> int:
        """Absolute position of the token that comes next."""
        return self._num_prompt_tokens + len(self.token_ids)

    def append(self, verdict: Verdict) -> Burst:
        """Takes over a verdict; raises ProtocolError when it does not continue the answer."""
        if self.finish_reason:
            raise ProtocolError(f"a verdict at position {verdict.first_position} follows the end of the answer")
        if verdict.first_position != self.next_position:
            raise ProtocolError(
                f"a verdict begins at position {verdict.first_position}, the answer goes on at {self.next_position}"
            )
        if self._sampling.num_logprobs is not None and len(verdict.logprobs) != len(verdict.token_ids):
            told = f"{len(verdict.logprobs)} of {len(verdict.token_ids)} tokens"
            raise ProtocolError(f"the verifier told log-probabilities of {told}")
        prompt_logprobs = () if self.token_ids else self._prompt_logprobs or ()
        self.token_ids += verdict.token_ids
        self.finish_reason = verdict.finish_reason
        stats = BurstStats(verdict.queue_us, verdict.step_us, verdict.num_nodes_verified, self._num_cached_tokens)
        self._num_cached_tokens = None
        return Burst(
            verdict.token_ids, verdict.finish_reason, verdict.num_accepted, stats, verdict.logprobs, prompt_logprobs
        )


class AnswerStream:
    """One answer in the making: its committed tokens, its drafting, its buffer, and whichever stream it has now."""

    def __init__(
        self,
        request: GenerationRequest,
        client: VerifierClient,
        source: DraftSource,
        info: ServerInfo,
        options: GenerationOptions,
    ) -> None:
        self.buffer: BurstBuffer[Burst] = BurstBuffer(options.max_buffered_bursts)
        self._request = request
        self._client = client
        self._info = info
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._answer = CommittedAnswer(len(request.prompt_ids), request.sampling)
        self._away_since: float | None = self._loop.time()  # None while verdicts come
        self._was_opened = False
        self._drafter_id = source.drafter_id
        self._epoch = 0
        self._num_streams = 0
        self._tracer = (
            DraftTracer(request.prompt_ids, info.max_live_nodes, self._loop.time) if request.is_traced else None
        )
        # Exists before the drafting begins, so that not one node of epoch 0 is lost.
        self._stream: VerifierStream | None = self._new_stream()
        self._draft_request = DraftRequest(
            session_id=request.request_id,
            committed=request.prompt_ids,
            sampling=request.sampling,
            eos_ids=info.eos_ids,
            max_live_nodes=min(info.max_live_nodes, request.max_draft_nodes or info.max_live_nodes),
            prediction=request.prediction_ids,
        )
        self._drafts: DraftSession = source.open(self._draft_request, self._on_nodes)

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

    def close_drafts(self) -> None:
        """Ends drafting for this answer."""
        self._drafts.close()

    async def _run_streams(self, span: trace.Span) -> None:
        backoff = Backoff()
        while True:
            num_committed = len(self._answer.token_ids)
            self._num_streams += 1
            try:
                await self._run_stream()
                return
            except SpecEdgeError as error:
                self._check_retryable(error)
                failure = error
            self._stream = None
            self._drafts.pause()
            self._client.observer.broken(str(failure))
            span.add_event("stream broken", {"reason": str(failure)})
            if len(self._answer.token_ids) > num_committed:
                backoff.reset()
            pause_s = backoff.next_s()
            if self._remaining_s() <= pause_s:
                self._client.observer.gave_up(str(failure))
                raise VerifierUnavailable(
                    f"no verifier at {self._client.address} went on with the answer within "
                    f"{self._options.verifier_deadline_s:g} s: {self._client.failure or failure}"
                )
            logger.info("session %s: opening again in %.2f s: %s", self._request.request_id, pause_s, failure)
            await asyncio.sleep(pause_s)

    async def _run_stream(self) -> None:
        """Runs one stream to the end of the answer; raises SpecEdgeError when it ends before."""
        is_resumed = self._stream is None
        async with self._stream or self._new_stream() as stream:
            message = await stream.read(self._remaining_s())
            if not isinstance(message, SessionOpened):
                raise VerifierUnavailable("the verifier did not begin with SessionOpened")
            self._was_opened = True
            try:
                self._answer.opened(message)
            except ProtocolError as error:
                raise VerifierUnavailable(str(error)) from error
            self.buffer.start()
            if is_resumed:
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
            trace = self._tracer.verdict(message, self._client.round_trip_s)
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
        # A token that was replaced is sent by the next stream; a tenant that has too much now may have less soon.
        if isinstance(error, CapacityExceeded | Unauthenticated) and self._was_opened:
            return
        if isinstance(error, ProtocolError) and self._drafter_id:
            logger.error("session %s: drafts were refused, going on without: %s", self._request.request_id, error)
            self._client.observer.drafts_refused()
            self._stop_drafting()
            return
        if isinstance(error, InvalidRequest | CapacityExceeded):
            raise error
        raise VerifierUnavailable(f"the verifier at {self._client.address} refuses this edge: {error}") from error

    def _stop_drafting(self) -> None:
        self._drafts.close()
        self._drafter_id = ""
        self._drafts = NullDraftSource().open(self._draft_request, self._on_nodes)

    def _on_nodes(self, epoch: int, nodes: DraftNodes) -> None:
        """Sends nodes of the present epoch; a later one is being begun by `restart` at this moment."""
        if self._stream is not None and self._drafter_id and epoch >= self._epoch:
            self._stream.send(nodes)
            if self._tracer is not None:
                self._tracer.sent(nodes)

    def _new_stream(self) -> VerifierStream:
        opening = OpenSession(
            request_id=self._request.request_id,
            prompt_ids=self._request.prompt_ids,
            committed_ids=tuple(self._answer.token_ids),
            sampling=self._answer.remaining_sampling,
            tokenizer_fingerprint=self._info.tokenizer_fingerprint,
            drafter_id=self._drafter_id,
            system="specedge" if self._drafter_id else "autoregressive",
            priority=self._request.priority,
            cache_salt=self._request.cache_salt,
        )
        return self._client.open_stream(opening, self._info)

    def _remaining_s(self) -> float:
        """Time left until the answer is given up."""
        if self._away_since is None:
            return self._options.verifier_deadline_s
        return max(self._options.verifier_deadline_s - (self._loop.time() - self._away_since), 0.0)
