"""What a request wants to know about tokens, and which ones it forbids."""

from dataclasses import dataclass, replace
from typing import Final

from edge_agent.http.schema import ChatRequest, CompletionRequest, GenerationFields, shown
from specedge.errors import InvalidRequest
from specedge.sampling import MAX_LOGPROBS, SamplingParams

MAX_BAD_WORDS: Final = 128
MAX_BAD_WORD_CHARS: Final = 1000


@dataclass(frozen=True, slots=True)
class TokenDetails:
    """What is told about tokens.

    Attributes:
        num_logprobs: log-probabilities of the answer's tokens, and of so many best ones beside each; None: none.
        num_prompt_logprobs: the same of the prompt's, as a list of their own.
        echoes: the prompt is part of the text, and its log-probabilities are told as the answer's are.
        drops_answer: only the prompt is of interest.
        as_token_ids: tokens are called "token_id:123".
        shows_token_ids: token ids are told.
    """

    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    echoes: bool = False
    drops_answer: bool = False
    as_token_ids: bool = False
    shows_token_ids: bool = False

    @property
    def shows_tokens(self) -> bool:
        """Whether a piece of an answer has something to show even where its tokens have no text yet."""
        return self.num_logprobs is not None or self.shows_token_ids

    def ask(self, sampling: SamplingParams, bad_words: tuple[tuple[int, ...], ...]) -> SamplingParams:
        """The parameters with what is to be computed for this, and without the bad words."""
        wanted = [self.num_prompt_logprobs, self.num_logprobs if self.echoes else None]
        num_prompt = max((num for num in wanted if num is not None), default=None)
        return replace(sampling, num_logprobs=self.num_logprobs, num_prompt_logprobs=num_prompt, bad_words=bad_words)


def chat_details(fields: ChatRequest) -> TokenDetails:
    """Raises InvalidRequest for values that contradict each other or are out of range."""
    num_top = _checked("top_logprobs", fields.top_logprobs)
    if num_top and not fields.logprobs:
        raise InvalidRequest(f"top_logprobs is {num_top}, which needs logprobs to be true", param="top_logprobs")
    return TokenDetails(
        num_logprobs=(num_top or 0) if fields.logprobs else None,
        num_prompt_logprobs=_prompt_logprobs(fields),
        as_token_ids=bool(fields.return_tokens_as_token_ids),
        shows_token_ids=bool(fields.return_token_ids),
    )


def completion_details(fields: CompletionRequest) -> TokenDetails:
    """Raises InvalidRequest for values that contradict each other or are out of range."""
    return TokenDetails(
        num_logprobs=_checked("logprobs", fields.logprobs),
        num_prompt_logprobs=_prompt_logprobs(fields),
        echoes=bool(fields.echo),
        drops_answer=bool(fields.echo) and fields.max_tokens == 0,
        as_token_ids=bool(fields.return_tokens_as_token_ids),
        shows_token_ids=bool(fields.return_token_ids),
    )


def bad_words_of(fields: GenerationFields) -> list[str]:
    """`bad_words`, checked."""
    words = fields.bad_words or []
    if len(words) > MAX_BAD_WORDS:
        message = f"bad_words has {len(words)} words; it may have at most {MAX_BAD_WORDS}"
        raise InvalidRequest(message, param="bad_words")
    for index, word in enumerate(words):
        if not word.strip() or len(word) > MAX_BAD_WORD_CHARS:
            limit = f"it must have 1 to {MAX_BAD_WORD_CHARS} characters, and not only spaces"
            raise InvalidRequest(f"bad_words[{index}] is {shown(word)}; {limit}", param="bad_words")
    return words


def _prompt_logprobs(fields: GenerationFields) -> int | None:
    num = _checked("prompt_logprobs", fields.prompt_logprobs)
    if num is not None and fields.stream:
        message = f"prompt_logprobs is {num} and stream is true; prompt_logprobs are told in whole answers only"
        raise InvalidRequest(message, param="prompt_logprobs")
    return num


def _checked(field: str, num: int | None) -> int | None:
    if num is not None and not 0 <= num <= MAX_LOGPROBS:
        raise InvalidRequest(f"{field} is {num}; it must be between 0 and {MAX_LOGPROBS}", param=field)
    return num
