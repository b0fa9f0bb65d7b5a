"""What a user asks of the sampler, checked once where it enters.

How these values turn logits into a token is stated by :mod:`specedge.reference_sampler` (numpy, one row) and done by
:mod:`specedge.sampler` (torch, batches): logit_bias, penalties, masks and the grammar, then division by the
temperature, then min_p, top_k and top_p, then position-keyed Gumbel noise and argmax.
"""

from dataclasses import dataclass
from typing import Final

from specedge.errors import InvalidRequest
from specedge.grammar.spec import GrammarSpec

GREEDY_BELOW: Final = 1e-5
"""Temperatures below this are zero: dividing by them would leave float32 without telling tokens apart any better."""

MAX_SEED: Final = 2**64 - 1
MAX_LOGIT_BIAS_ENTRIES: Final = 1024
MAX_STOP_TOKEN_IDS: Final = 128
MAX_LOGPROBS: Final = 20
MAX_BAD_WORDS: Final = 256
MAX_BAD_WORD_TOKENS: Final = 64
MAX_ALLOWED_TOKEN_IDS: Final = 4096


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """One request's sampling parameters, with OpenAI's and vLLM's names and meanings.

    Attributes:
        temperature: 0 is greedy.
        top_p: keep the smallest set of best tokens whose probability reaches this; 1 keeps all.
        top_k: keep this many best tokens; 0 keeps all.
        min_p: keep tokens at least this likely relative to the best one; 0 keeps all.
        presence_penalty: subtracted once from tokens generated before.
        frequency_penalty: subtracted per occurrence from tokens generated before.
        repetition_penalty: divides positive and multiplies negative logits of tokens in prompt or answer.
        logit_bias: pairs of token id and value added to its logit.
        seed: names the noise; the same seed gives the same text.
        max_tokens: the answer ends after this many tokens.
        min_tokens: end-of-sequence and stop ids are masked until this many tokens are generated.
        ignore_eos: the end-of-sequence tokens do not end the answer.
        stop_token_ids: further ids that end the answer.
        num_logprobs: log-probabilities of the answer's tokens are wanted, and of so many best ones beside each; None:
            not wanted.
        num_prompt_logprobs: the same of the prompt's tokens.
        bad_words: sequences that the answer never contains; the last token of one is masked after those before it.
        allowed_token_ids: unless empty, all other tokens are masked.
        grammar: what the text of the answer must follow; its end ends the answer whatever ignore_eos says, and where
            nothing but stop tokens may follow, min_tokens does not hold them back.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    max_tokens: int = 16
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    grammar: GrammarSpec | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether the best logit is taken, without noise or filters."""
        return self.temperature < GREEDY_BELOW

    @property
    def has_penalties(self) -> bool:
        """Whether a token's score depends on how often it came before."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1

    @property
    def needs_paths(self) -> bool:
        """Whether a row must be told the draft tokens before it.

        Penalties need them, and bad words of several tokens. The min_tokens mask depends on the path's length alone,
        and a row's absolute position says how long its path is.
        """
        return self.has_penalties or (bool(self.bad_words) and any(len(word) > 1 for word in self.bad_words))

    @property
    def edits_logits(self) -> bool:
        """Whether logits change before the temperature, so that even a greedy choice is more than an argmax."""
        return self.has_penalties or bool(
            self.logit_bias or self.min_tokens or self.bad_words or self.allowed_token_ids
        )

    def validate(self, vocab_size: int) -> None:
        """Refuse values outside their limits; a grammar is checked where it is compiled.

        Raises:
            InvalidRequest: names the field, its value and the limit.
        """
        _require_between("temperature", self.temperature, 0, 2)
        _require_between("top_p", self.top_p, 0, 1, excluding_low=True)
        _require_between("top_k", self.top_k, 0, vocab_size)
        _require_between("min_p", self.min_p, 0, 1)
        _require_between("presence_penalty", self.presence_penalty, -2, 2)
        _require_between("frequency_penalty", self.frequency_penalty, -2, 2)
        if not 0 < self.repetition_penalty < float("inf"):
            _refuse("repetition_penalty", self.repetition_penalty, "must be finite and greater than 0")
        _require_between("seed", self.seed, 0, MAX_SEED)
        if self.max_tokens < 1:
            _refuse("max_tokens", self.max_tokens, "must be at least 1")
        if not 0 <= self.min_tokens <= self.max_tokens:
            _refuse("min_tokens", self.min_tokens, f"must be between 0 and max_tokens ({self.max_tokens})")
        self._validate_logit_bias(vocab_size)
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            count = f"{len(self.stop_token_ids)} ids"
            _refuse("stop_token_ids", count, f"may hold at most {MAX_STOP_TOKEN_IDS}", verb="has")
        for token_id in self.stop_token_ids:
            _require_token_id("stop_token_ids", token_id, vocab_size)
        for field, num in (("logprobs", self.num_logprobs), ("prompt_logprobs", self.num_prompt_logprobs)):
            if num is not None:
                _require_between(field, num, 0, MAX_LOGPROBS)
        self._validate_masks(vocab_size)

    def _validate_masks(self, vocab_size: int) -> None:
        if len(self.bad_words) > MAX_BAD_WORDS:
            _refuse("bad_words", f"{len(self.bad_words)} spellings", f"may have at most {MAX_BAD_WORDS}", verb="has")
        for word in self.bad_words:
            if not 1 <= len(word) <= MAX_BAD_WORD_TOKENS:
                size = f"a spelling of {len(word)} tokens"
                _refuse("bad_words", size, f"may have spellings of 1 to {MAX_BAD_WORD_TOKENS}", verb="has")
            for token_id in word:
                _require_token_id("bad_words", token_id, vocab_size)
        if len(self.allowed_token_ids) > MAX_ALLOWED_TOKEN_IDS:
            count = f"{len(self.allowed_token_ids)} ids"
            _refuse("allowed_token_ids", count, f"may hold at most {MAX_ALLOWED_TOKEN_IDS}", verb="has")
        for token_id in self.allowed_token_ids:
            _require_token_id("allowed_token_ids", token_id, vocab_size)

    def _validate_logit_bias(self, vocab_size: int) -> None:
        if len(self.logit_bias) > MAX_LOGIT_BIAS_ENTRIES:
            count = f"{len(self.logit_bias)} entries"
            _refuse("logit_bias", count, f"may hold at most {MAX_LOGIT_BIAS_ENTRIES}", verb="has")
        seen: set[int] = set()
        for token_id, bias in self.logit_bias:
            _require_token_id("logit_bias", token_id, vocab_size)
            if token_id in seen:
                _refuse("logit_bias", f"token id {token_id} twice", "may name each token id at most 1 time", verb="has")
            seen.add(token_id)
            if not -100 <= bias <= 100:
                _refuse("logit_bias", f"{bias} for token id {token_id}", "must be between -100 and 100")


def _require_between(field: str, value: float, low: float, high: float, *, excluding_low: bool = False) -> None:
    """Written so that NaN, for which every comparison is false, is refused."""
    if low <= value <= high and not (excluding_low and value == low):
        return
    limit = f"greater than {low} and at most {high}" if excluding_low else f"between {low} and {high}"
    _refuse(field, value, f"must be {limit}")


def _require_token_id(field: str, token_id: int, vocab_size: int) -> None:
    if not 0 <= token_id < vocab_size:
        _refuse(field, f"token id {token_id}", f"must name ids between 0 and {vocab_size - 1}", verb="has")


def _refuse(field: str, value: object, limit: str, *, verb: str = "is") -> None:
    raise InvalidRequest(f"{field} {verb} {value}; it {limit}", param=field)
