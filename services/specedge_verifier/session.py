"""A session as the scheduler sees it: committed tokens, how many are computed, and what its edge has drafted."""

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from specedge.errors import InvalidRequest
from specedge.penalties import TokenCounts
from specedge.sampling import SamplingParams
from specedge.stopping import FinishReason, TokenStops
from specedge.trie import DraftTrie
from specedge.wire.messages import TokenLogprob
from specedge_verifier.session_blocks import SessionBlocks
from specedge_verifier.tenant_account import Tenant, TenantAccount

if TYPE_CHECKING:
    from specedge.grammar.state import GrammarState

_GAP_WEIGHT = 0.2  # of a new observation in the moving averages


@dataclass(slots=True)
class DraftGap:
    """How long a session's next draft takes: a moving average over the verdicts that left nothing to verify."""

    late_s: float = inf  # from such a verdict until live nodes arrive, in seconds
    bare_since_s: float | None = None  # since when the session has had nothing but its root

    def verdict(self, now_s: float, has_nodes: bool) -> None:
        """A verdict was given; `has_nodes` says whether live nodes survived it."""
        if has_nodes:
            self.bare_since_s = None
        elif self.bare_since_s is None:
            self.bare_since_s = now_s

    def drafted(self, now_s: float) -> None:
        """Live nodes arrived."""
        if self.bare_since_s is not None:
            gap_s = now_s - self.bare_since_s
            self.late_s = _average(self.late_s, gap_s)
            self.bare_since_s = None


def _average(mean: float, value: float) -> float:
    return value if mean == inf else mean + _GAP_WEIGHT * (value - mean)


@dataclass(frozen=True, slots=True)
class AnswerEnd:
    """What becomes of an answer with the next tokens.

    Attributes:
        tokens: those that belong to it.
        finish_reason: why it ends with them; None: it goes on, or fails.
        error: why it cannot go on after them.
    """

    tokens: list[int]
    finish_reason: FinishReason | None
    error: InvalidRequest | None = None


@dataclass(slots=True, eq=False)
class Session:
    """One generation.

    Attributes:
        handle: the engine's number for it.
        params: sampling parameters, validated.
        eos_ids: the target's end-of-sequence tokens.
        trie: committed tokens (prompt and answer) and live draft nodes.
        num_prompt: how many of the committed tokens are the prompt.
        num_computed: committed tokens whose keys and values are in the session's blocks.
        counts: token counts for penalties; None when no parameter needs them.
        account: its tenant's.
        grammar: at the committed tokens; None when the answer need not follow one.
        speculative: whether draft nodes are taken at all.
        num_cached: prompt tokens the prefix cache spared at admission.
        prompt_logprobs: when they are wanted, those of the prompt's tokens from the second one on, as far as computed.
        wants_logprobs: whether any are wanted, of the prompt or of the answer.
        ready_since_s: since when there has been something to compute; None while only a draft could add to it.
        is_paused: its reader is too slow; it takes no step until the outbox has drained.
        order: sort key of service: higher priority first; then answers that go on, which somebody already reads; then
            first come.
        deepest_position: where a draft node can still shorten the answer; after it comes only the last token.
    """

    handle: int
    params: SamplingParams
    eos_ids: tuple[int, ...]
    trie: DraftTrie
    stops: TokenStops
    num_prompt: int
    blocks: SessionBlocks
    arrived_s: float
    priority: int = 0
    drafter_id: str = ""
    speculative: bool = True
    counts: TokenCounts | None = None
    account: TenantAccount = field(default_factory=TenantAccount)
    grammar: "GrammarState | None" = None
    num_computed: int = 0
    num_cached: int = 0
    is_paused: bool = False
    ready_since_s: float | None = None
    gap: DraftGap = field(default_factory=DraftGap)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    wants_logprobs: bool = field(init=False)
    order: tuple[int, bool, float, int] = field(init=False)
    deepest_position: int = field(init=False)

    def __post_init__(self) -> None:
        self.order = (-self.priority, self.num_generated == 0, self.arrived_s, self.handle)
        self.ready_since_s = self.arrived_s
        self.wants_logprobs = self.params.num_logprobs is not None or self.params.num_prompt_logprobs is not None
        self.deepest_position = self.num_prompt + self.params.max_tokens - 2

    def queued_s(self, now_s: float) -> float:
        """Seconds for which the session has had something to compute."""
        return 0.0 if self.ready_since_s is None else now_s - self.ready_since_s

    def end_of(self, tokens: list[int]) -> "AnswerEnd":
        """How far the answer goes along tokens of the target that follow it."""
        kept, finish_reason = self.stops.truncate(tokens, self.num_generated)
        if self.grammar is None:
            return AnswerEnd(kept, finish_reason)
        if self.grammar.is_too_slow:
            return AnswerEnd([], None, self._grammar_error("takes too long to follow"))
        num_followed = self.grammar.accept(kept)
        if self.grammar.is_ended:
            return AnswerEnd(kept[:num_followed], "stop")
        if num_followed < len(kept):
            return AnswerEnd(kept[:num_followed], None, self._grammar_error("allows no token here"))
        return AnswerEnd(kept, finish_reason)

    def _grammar_error(self, reason: str) -> InvalidRequest:
        assert self.params.grammar is not None
        message = f"{self.params.grammar.kind} {reason}, after {self.num_generated} tokens of the answer"
        return InvalidRequest(message, self.params.grammar.param)

    @property
    def tenant(self) -> Tenant:
        """Whose session it is, with the limits of now."""
        return self.account.limits

    @property
    def tokens(self) -> list[int]:
        return self.trie.committed

    @property
    def num_generated(self) -> int:
        return len(self.trie.committed) - self.num_prompt

    @property
    def num_uncomputed(self) -> int:
        """Committed tokens still to be computed: 1 (the root) while decoding."""
        return len(self.trie.committed) - self.num_computed

    @property
    def is_prompt_scored(self) -> bool:
        """Whether all log-probabilities of the prompt that are wanted have been computed."""
        return self.params.num_prompt_logprobs is None or len(self.prompt_logprobs) == self.num_prompt - 1

    def scored(self, start: int, num_chunk: int) -> range:
        """Of the committed tokens from `start` on, those after which a prompt's log-probabilities are still wanted."""
        if self.is_prompt_scored:
            return range(0)
        return range(max(start, len(self.prompt_logprobs)), min(start + num_chunk, self.num_prompt - 1))

    @property
    def is_drafted(self) -> bool:
        """Whether draft nodes could still shorten this session."""
        return self.speculative and len(self.trie.committed) <= self.deepest_position
