"""Degraded mode: whole answers by the draft model alone, for requests that come while no verifier can be reached.

An answer is one model's from its first token to its last: one that a verifier began waits for a verifier, and one that
the draft model began stays with the draft model.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from edge_agent.answer_stream import GenerationRequest
from edge_agent.burst_buffer import BurstBuffer
from edge_agent.committed_answer import Burst
from edge_agent.decoding_session import Decoded, DecodingSession
from specedge.drafting.draft_session import DraftRequest
from specedge.errors import VerifierUnavailable
from specedge.sampling import SamplingParams
from specedge.wire.messages import ServerInfo

if TYPE_CHECKING:
    from edge_agent.drafter import Drafter

logger = logging.getLogger(__name__)

PATIENCE_S: Final = 1.0
"""A connection that is lost has so long to come back before requests are answered without it."""
_LOOK_EVERY_S: Final = 0.1
_MAX_BUFFERED: Final = 64
DRAFT_ONLY: Final = "draft-only"
"""What such answers are marked with."""


class DraftOnlyMetrics:
    """What degraded mode tells Prometheus."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.is_on = Gauge(
            "specedge_edge_draft_only",
            "1 while no verifier can be reached and the draft model answers alone",
            registry=registry,
        )
        self.answers = Counter(
            "specedge_edge_draft_only_answers", "Answers of the draft model alone, begun", registry=registry
        )


class DraftOnly:
    """Answers of the draft model.

    Args:
        drafter: the draft model; decodes alone.
        info: what it serves by itself, in the form of a verifier's.
        is_reachable: whether a verifier could be asked now.
        metrics: written to.

    Attributes:
        info: this.
    """

    def __init__(
        self, drafter: "Drafter", info: ServerInfo, is_reachable: Callable[[], bool], metrics: DraftOnlyMetrics
    ) -> None:
        self.info = info
        self._drafter = drafter
        self._is_reachable = is_reachable
        self._metrics = metrics
        self._is_on = False

    @property
    def is_on(self) -> bool:
        """Whether no verifier has been reachable for a while."""
        return self._is_on and self._drafter.is_alive

    async def watch(self) -> None:
        """Looks after the verifiers, for ever."""
        clock = asyncio.get_running_loop().time
        reached_s = clock()
        while True:
            if self._is_reachable():
                reached_s = clock()
            self._turn(clock() - reached_s >= PATIENCE_S)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def is_needed(self) -> bool:
        """Whether a request that has come is to be answered by the draft model; waits until that is clear."""
        while not self._is_reachable():
            if self._is_on:
                return self._drafter.is_alive
            await asyncio.sleep(_LOOK_EVERY_S)
        return False

    def _turn(self, is_on: bool) -> None:
        if is_on and not self._is_on:
            logger.warning("no verifier can be reached: the draft model answers alone (draft_only)")
        elif self._is_on and not is_on:
            logger.warning("a verifier can be reached again: answers that begin now are the target model's")
        self._is_on = is_on
        self._metrics.is_on.set(is_on)

    @asynccontextmanager
    async def open(self, request: GenerationRequest) -> AsyncIterator[BurstBuffer[Burst]]:
        """Begins to decode; a burst for each token comes into the buffer. Leaving the block ends it.

        Raises VerifierUnavailable for what takes a verifier.
        """
        check_feasible(request.sampling)
        if not self._drafter.is_alive:
            raise VerifierUnavailable("no verifier can be reached, and the draft model has ended")
        answer = _Answer(self._drafter, request, self.info.eos_ids)
        self._metrics.answers.inc()
        logger.info("session %s: answered by the draft model alone", request.request_id)
        try:
            yield answer.buffer
        finally:
            answer.close()


class _Answer:
    """One answer, on the event loop's side."""

    def __init__(self, drafter: "Drafter", request: GenerationRequest, eos_ids: tuple[int, ...]) -> None:
        self._drafter = drafter
        self.buffer: BurstBuffer[Burst] = BurstBuffer(_MAX_BUFFERED)
        self._resuming: asyncio.Task[None] | None = None
        draft_request = DraftRequest(
            session_id=request.request_id,
            committed=request.prompt_ids + request.committed_ids,
            sampling=request.sampling,
            eos_ids=eos_ids,
            max_live_nodes=0,
        )
        self._session = DecodingSession(draft_request, self._take, len(request.prompt_ids))
        drafter.decode(self._session)

    def close(self) -> None:
        """Nobody reads it any more."""
        if self._resuming is not None:
            self._resuming.cancel()
        self._drafter.end_decoding(self._session)

    def _take(self, decoded: Decoded) -> None:
        if decoded.error is not None:
            self.buffer.fail(decoded.error)
            return
        self.buffer.put(Burst((decoded.token_id,), decoded.finish_reason, num_accepted=0))
        if decoded.finish_reason:
            self.buffer.finish()
        elif self.buffer.is_full and self._resuming is None:
            self._drafter.pause_decoding(self._session, True)
            self._resuming = asyncio.create_task(self._resume())

    async def _resume(self) -> None:
        await self.buffer.wait_room()
        self._resuming = None
        self._drafter.pause_decoding(self._session, False)


def check_feasible(sampling: SamplingParams) -> None:
    """Raises VerifierUnavailable, naming what a draft model alone does not do."""
    for what, is_wanted in (
        ("an answer that follows a grammar", sampling.grammar is not None),
        ("log-probabilities", sampling.num_logprobs is not None or sampling.num_prompt_logprobs is not None),
    ):
        if is_wanted:
            raise VerifierUnavailable(f"no verifier can be reached, and {what} needs one: this edge answers draft-only")
