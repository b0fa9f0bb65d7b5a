"""Generation as the rest of the edge sees it: a request in, bursts of tokens out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from edge_agent.answer_stream import AnswerStream, GenerationOptions, GenerationRequest
from edge_agent.burst_buffer import BurstBuffer
from edge_agent.committed_answer import Burst, BurstStats
from edge_agent.draft_only import DraftOnly
from edge_agent.draft_source import DraftSource, NullDraftSource
from edge_agent.verifier_client import VerifierClient
from edge_agent.verifier_member import Need
from edge_agent.verifier_pool import VerifierPool
from specedge.errors import CapacityExceeded, EdgeStopping, InvalidRequest, VerifierUnavailable
from specedge.sampling import SamplingParams
from specedge.wire.messages import DRAFT_TRIES, GRAMMARS, LOGPROBS, TOKEN_MASKS, ServerInfo, check_token_ids

__all__ = ["Burst", "BurstStats", "GenerationOptions", "GenerationRequest", "GenerationService"]


_LEAST: Final = Need(num_prompt_tokens=1)
"""What every request needs at least."""


class GenerationService:
    """Generates answers with the verifiers of a pool, or the one behind a client, and the drafts of `draft_source`."""

    def __init__(
        self,
        verifiers: VerifierPool | VerifierClient,
        draft_source: DraftSource,
        tokenizer_fingerprint: str,
        options: GenerationOptions | None = None,
        draft_only: DraftOnly | None = None,
    ) -> None:
        self._pool = verifiers if isinstance(verifiers, VerifierPool) else VerifierPool.of(verifiers)
        self._draft_source = draft_source
        self._fingerprint = tokenizer_fingerprint
        self._options = options or GenerationOptions()
        self._draft_only = draft_only
        self._buffers: set[BurstBuffer[Burst]] = set()
        self._end: str | None = None

    @property
    def info(self) -> ServerInfo | None:
        """What the verifiers serve; None until one has answered."""
        return self._pool.info

    @property
    def is_ready(self) -> bool:
        """Whether a verifier has answered and is still connected."""
        return self._pool.is_ready

    @property
    def failure(self) -> str | None:
        """Why no verifier can be reached, as far as more is known than that."""
        return self._pool.failure

    @property
    def verifiers(self) -> list[tuple[str, str, str | None]]:
        """Address, state, and what is wrong, of each verifier where there are several."""
        return self._pool.states

    async def start(self) -> ServerInfo:
        """Asks the verifiers what they serve; raises as `VerifierPool.start`."""
        return await self._pool.start(self._fingerprint, self._options.verifier_deadline_s)

    def end(self, reason: str) -> None:
        """Ends all answers that run or begin from now on with EdgeStopping."""
        self._end = reason
        for buffer in self._buffers:
            buffer.fail(EdgeStopping(reason))

    @property
    def refusal(self) -> CapacityExceeded | None:
        """What every request of ordinary priority is told now, however small it is; None: it has to be looked at."""
        is_alone = self._draft_only is not None and not self._pool.is_reachable
        if self._end is not None or self.info is None or is_alone:
            return None
        return self._pool.refusal(_LEAST)

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[Burst]]:
        """Opens a session and gives its bursts; leaving the block ends it on both sides at once.

        Raises InvalidRequest, CapacityExceeded (before the first burst only), VerifierUnavailable or EdgeStopping.
        """
        if self._end is not None:
            raise EdgeStopping(self._end)
        if request.is_draft_only:
            async with self._generate_alone(request) as bursts:
                yield bursts
            return
        info = self.info
        if info is None:
            raise VerifierUnavailable(self.failure or f"the verifier at {self._pool.address} has not answered yet")
        request.sampling.validate(info.vocab_size)
        check_token_ids(request.prompt_ids, info.vocab_size, "prompt_ids")
        check_token_ids(request.committed_ids, info.vocab_size, "committed_ids")
        _check_capabilities(request.sampling, info)
        check_token_ids(request.prediction_ids, info.vocab_size, "prediction_ids")
        grammar = request.sampling.grammar
        if grammar is not None and GRAMMARS not in info.capabilities:
            raise InvalidRequest("this verifier cannot make answers follow a grammar", grammar.param)
        need = Need.of(len(request.prompt_ids), request.sampling, info, request.priority)
        if (refusal := self._pool.refusal(need)) is not None:
            raise refusal
        is_speculative = request.speculate and DRAFT_TRIES in info.capabilities
        source = self._draft_source if is_speculative else NullDraftSource()
        answer = AnswerStream(request, self._pool, source, info, self._options)
        task = asyncio.create_task(answer.run(), name=f"answer {request.request_id}")
        self._buffers.add(answer.buffer)
        try:
            try:
                await answer.buffer.wait_started()
            except CapacityExceeded as error:
                error.retry_after_s = self._pool.later_s(error.retry_after_s)
                raise
            yield answer.buffer.bursts()
        finally:
            self._buffers.discard(answer.buffer)
            answer.close_drafts()
            task.cancel()
            await asyncio.wait({task})

    @asynccontextmanager
    async def _generate_alone(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[Burst]]:
        if self._draft_only is None:
            raise VerifierUnavailable("draft_only is off: the draft model does not answer alone")
        async with self._draft_only.open(request) as buffer:
            self._buffers.add(buffer)
            try:
                yield buffer.bursts()
            finally:
                self._buffers.discard(buffer)


def _check_capabilities(sampling: SamplingParams, info: ServerInfo) -> None:
    """Refuse what an older verifier would silently leave out."""
    for field, is_wanted, capability in (
        ("logprobs", sampling.num_logprobs is not None, LOGPROBS),
        ("prompt_logprobs", sampling.num_prompt_logprobs is not None, LOGPROBS),
        ("bad_words", bool(sampling.bad_words), TOKEN_MASKS),
        ("allowed_token_ids", bool(sampling.allowed_token_ids), TOKEN_MASKS),
    ):
        if is_wanted and capability not in info.capabilities:
            raise InvalidRequest(f"{field} is given, but the verifier does not have it", param=field)
