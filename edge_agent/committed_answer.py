"""The committed tokens of an answer, and the bursts in which they come."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from edge_agent.draft_trace import RoundTrace
from specedge.errors import ProtocolError
from specedge.sampling import SamplingParams
from specedge.wire.messages import FinishReason, SessionOpened, TokenLogprob, Verdict

_PLAIN = SamplingParams()


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
    the prompt but the first, come with the first burst. With `is_replayed` the tokens were generated for an earlier
    request.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    num_accepted: int
    stats: BurstStats = field(default_factory=BurstStats)
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    is_replayed: bool = False


class CommittedAnswer:
    """The tokens committed so far. A verdict must continue them exactly.

    Args:
        num_prompt_tokens: length of the prompt.
        sampling: what was asked for.
        committed_ids: tokens of an earlier request for the same answer, which told all there is to tell of the prompt.
    """

    def __init__(
        self, num_prompt_tokens: int, sampling: SamplingParams = _PLAIN, committed_ids: Sequence[int] = ()
    ) -> None:
        self.token_ids: list[int] = [*committed_ids]
        self.finish_reason: FinishReason = ""
        self._num_prompt_tokens = num_prompt_tokens
        self._num_cached_tokens: int | None = None
        self._sampling = sampling
        self._prompt_logprobs: tuple[TokenLogprob, ...] | None = () if committed_ids else None

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
