"""One answer's text as its tokens arrive: detokenised, and ended by stop strings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from edge_agent.detokenizer import Detokenizer
from edge_agent.draft_trace import RoundTrace
from edge_agent.generation import Burst
from edge_agent.http.prediction import PredictionCount
from specedge.stopping import TextStopper
from specedge.wire.messages import TokenLogprob


class PromptTokens(NamedTuple):
    """A prompt's tokens, and the log-probabilities of all but the first where they were asked for."""

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one burst added to an answer.

    Args:
        choice: index of the answer.
        texts: what each token adds that may be shown now; often empty. As many as tokens belong to the answer, counted
            to the one that completed a stop string.
        finish_reason: "" while the answer goes on.
        num_draft_nodes: draft nodes verified for the burst.
        num_accepted: how many of them the target agreed with.
        num_cached_tokens: prompt tokens found in the verifier's prefix cache; told with the first piece of a
            prompt's first answer only.
        stop_reason: the stop string, or the id of the stop token that the request named, which ended the answer.
        token_ids: the tokens, as many as texts.
        logprobs: theirs, where they were asked for.
        prompt: with the first piece only.
        echo: text of the prompt that comes before the answer's; with the first piece only.
        num_predicted: tokens of the request's prediction that the answer has taken over so far.
        num_mispredicted: those that it has not; 0 until the answer has ended.
        queue_us, step_us: the burst's waiting and computing on the verifier.
        round: what its round looked like, for a traced answer.
        is_replayed: the tokens were generated for an earlier request.
    """

    choice: int
    texts: tuple[str, ...]
    finish_reason: str
    num_draft_nodes: int = 0
    num_accepted: int = 0
    num_cached_tokens: int | None = None
    stop_reason: str | int | None = None
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt: PromptTokens | None = None
    echo: str = ""
    num_predicted: int = 0
    num_mispredicted: int = 0
    queue_us: int = 0
    step_us: int = 0
    round: RoundTrace | None = None
    is_replayed: bool = False

    @property
    def num_tokens(self) -> int:
        return len(self.texts)


class ChoiceText:
    """Takes tokens one by one, so that text and counts do not depend on how the tokens arrived in bursts.

    Args:
        choice: index of the answer.
        detokenizer: a fresh one.
        stops: stop strings.
        min_tokens: stop strings count only in the text of the tokens after these.
        keeps_stop: what ends the answer, a stop string or a stop token, is part of its text.
        stop_token_ids: the stop tokens that the request named.
        prompt_ids: the prompt.
        echo: text that comes before the answer's.
        drops_answer: the answer's tokens are left out, and it ends with the first of them.
        prediction_ids: what the client expects the answer to be.
    """

    def __init__(
        self,
        choice: int,
        detokenizer: Detokenizer,
        stops: Sequence[str],
        min_tokens: int,
        *,
        keeps_stop: bool = False,
        stop_token_ids: Sequence[int] = (),
        prompt_ids: tuple[int, ...] = (),
        echo: str = "",
        drops_answer: bool = False,
        prediction_ids: Sequence[int] = (),
    ) -> None:
        self._choice = choice
        self._detokenizer = detokenizer
        self._stopper = TextStopper(stops, keeps_stop=keeps_stop)
        self._keeps_stop = keeps_stop
        self._min_tokens = min_tokens
        self._stop_token_ids = frozenset(stop_token_ids)
        self._num_tokens = 0
        self._prompt_ids = prompt_ids
        self._echo = echo
        self._drops_answer = drops_answer
        self._is_begun = False
        self._prediction = PredictionCount(prediction_ids)

    def advance(self, burst: Burst) -> Piece:
        """The next piece; a stop token that ends the answer has no text unless it is to be kept."""
        stats = burst.stats
        prompt, echo = None, ""
        if not self._is_begun:
            prompt, echo = PromptTokens(self._prompt_ids, burst.prompt_logprobs), self._echo
            self._is_begun = True
        if self._drops_answer:
            return Piece(
                self._choice, (), "length", num_cached_tokens=stats.num_cached_tokens, prompt=prompt, echo=echo
            )
        texts, finish_reason = self._take(burst.token_ids, burst.finish_reason)
        self._prediction.take(burst.token_ids[: len(texts)])
        return Piece(
            self._choice,
            tuple(texts),
            finish_reason,
            stats.num_nodes_verified,
            burst.num_accepted,
            stats.num_cached_tokens,
            self._stop_reason(burst) if finish_reason == "stop" else None,
            burst.token_ids[: len(texts)],
            burst.logprobs[: len(texts)],
            prompt,
            echo,
            self._prediction.num_accepted,
            self._prediction.num_rejected if finish_reason else 0,
            queue_us=stats.queue_us,
            step_us=stats.step_us,
            round=stats.round,
            is_replayed=burst.is_replayed,
        )

    def _stop_reason(self, burst: Burst) -> str | int | None:
        if self._stopper.hit is not None:
            return self._stopper.hit
        last = burst.token_ids[-1]
        return last if last in self._stop_token_ids else None

    def _take(self, token_ids: Sequence[int], finish_reason: str) -> tuple[list[str], str]:
        texts: list[str] = []
        for num_taken, token_id in enumerate(token_ids, start=1):
            self._num_tokens += 1
            is_stop_token = finish_reason == "stop" and num_taken == len(token_ids)
            is_silent = is_stop_token and not self._keeps_stop
            text, is_hit = self._admit("" if is_silent else self._detokenizer.feed(token_id))
            texts.append(text)
            if is_hit:
                return texts, "stop"
        if finish_reason:
            text, is_hit = self._admit(self._detokenizer.flush())
            texts[-1] += text + self._stopper.flush()
            finish_reason = "stop" if is_hit else finish_reason
        return texts, finish_reason

    def _admit(self, text: str) -> tuple[str, bool]:
        if self._num_tokens <= self._min_tokens:
            return text, False
        return self._stopper.feed(text)
