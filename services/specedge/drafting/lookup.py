"""Free drafts: what followed the same tokens earlier in the text, or in what the user expects the answer to be.

A source is followed token by token: while it agrees, it is read on; where it does not, the last tokens are searched for
in it. So what it costs is per committed token, and the drafts depend on the text alone, not on how verdicts cut it.
"""

from collections.abc import Callable, Sequence
from math import exp, log
from typing import NamedTuple

from specedge.drafting.followed_grammar import FollowedGrammar
from specedge.drafting.lookup_acceptance import LookupAcceptance, SessionAcceptance, Source
from specedge.drafting.ngram_index import MAX_MATCH, MIN_MATCH, Match, NGramIndex

MAX_CHAIN = 64
"""Most tokens looked up at a time."""

MIN_PATH_PROBABILITY = 0.05
"""Chains end where they become less probable than this."""

MAX_INDEXED = 65_536
"""Tokens of a prompt that are searched: the last ones."""

_ANCHOR = Match(0, 4)
"""A prediction is trusted from its beginning on as after so many agreeing tokens."""


class Chain(NamedTuple):
    """Tokens that may come one after the other, with the log-probability of each after the one before it."""

    source: Source
    token_ids: list[int]
    log_probs: list[float]


class Follower:
    """One source, read along with the answer.

    Args:
        source: which.
        index: its tokens.
        acceptance: what its tokens are worth.
        begins_with: the match before the answer's first token.

    Attributes:
        match: where the source goes on; None while it has nothing to say.
    """

    def __init__(
        self, source: Source, index: NGramIndex, acceptance: SessionAcceptance, begins_with: Match | None
    ) -> None:
        self.source: Source = source
        self.index = index
        self.match = begins_with
        self._acceptance = acceptance

    @property
    def is_lost(self) -> bool:
        """Whether the source should be searched for a better place."""
        return self.match is None or self.match.length < MIN_MATCH

    def take(self, token_id: int) -> None:
        """The text goes on with this token."""
        if self.match is None:
            return
        position, length = self.match
        if position >= len(self.index):
            self.match = None
            return
        is_right = self.index.token_ids[position] == token_id
        self._acceptance.observe(length, is_right)
        # A token that differs was perhaps exchanged for another: the source may go on after it.
        self.match = Match(position + 1, min(length + 1, MAX_MATCH) if is_right else 0)

    def search(self, tail: Sequence[int]) -> None:
        """Looks for a better place, after the text has come to end with `tail`."""
        near = len(self.index) if self.match is None else self.match.position
        self.match = self.index.find(tail, near) or self.match

    def chain(
        self,
        match: Match,
        path: Sequence[int],
        position: int,
        is_final: Callable[[int, int], bool],
        probability: float = 1.0,
    ) -> Chain:
        """What the source says after a match, as far as it is worth a draft.

        Args:
            match: in this source.
            path: tokens supposed after the committed ones.
            position: of the chain's first token in the text.
            is_final: tells whether nothing can follow a token at a position.
            probability: that the draft comes true as far as the chain.
        """
        tokens, at, length = self.index.token_ids, match.position, match.length
        goes_on = self.source == "lookup"  # with the path, and then with the chain itself; a prediction ends
        supposed, num_known = [*path], len(tokens)
        log_probs: list[float] = []
        while len(log_probs) < MAX_CHAIN and (at < num_known or goes_on):
            share = self._acceptance.probability(length)
            probability *= share
            if probability < MIN_PATH_PROBABILITY:
                break
            token = tokens[at] if at < num_known else supposed[at - num_known]
            supposed.append(token)
            log_probs.append(log(share))
            if is_final(token, position):
                break
            at, length, position = at + 1, length + 1, position + 1
        return Chain(self.source, supposed[len(path) :], log_probs)


def prediction_follower(token_ids: Sequence[int], acceptance: LookupAcceptance | None = None) -> Follower:
    """Follows a prediction from its beginning on; without `acceptance` only to see where the answer agrees with it."""
    worth = SessionAcceptance(acceptance or LookupAcceptance(), "prediction")
    return Follower("prediction", NGramIndex(token_ids), worth, _ANCHOR)


class SessionLookup:
    """The free drafts of one answer.

    Args:
        committed: prompt and answer so far; at least one token.
        prompt_len: how many of them are the prompt.
        capacity: tokens they may come to be.
        prediction: what the answer is expected to be; may be empty.
        acceptance: what all sessions have seen.
        is_final: tells whether nothing can follow a token at a position.
        grammar: what it refuses is not proposed; its owner moves it on before `commit`.
    """

    def __init__(
        self,
        committed: Sequence[int],
        prompt_len: int,
        capacity: int,
        prediction: Sequence[int],
        acceptance: LookupAcceptance,
        is_final: Callable[[int, int], bool],
        grammar: FollowedGrammar,
    ) -> None:
        self._is_final = is_final
        self._grammar = grammar
        self._num_committed = prompt_len
        text = NGramIndex(committed[max(0, prompt_len - MAX_INDEXED) : prompt_len], min(capacity, MAX_INDEXED))
        self._text = Follower("lookup", text, SessionAcceptance(acceptance, "lookup"), None)
        self._followers = [self._text]
        if prediction:
            self._followers.append(prediction_follower(prediction, acceptance))
        self._text.search(self._tail())
        self.commit(committed[prompt_len:])

    def commit(self, token_ids: Sequence[int]) -> None:
        """The text goes on with these tokens."""
        text = self._text.index
        for token_id in token_ids:
            for follower in self._followers:
                follower.take(token_id)
            text.append(token_id)
            for follower in self._followers:
                if follower.is_lost:
                    follower.search(self._tail())
        self._num_committed += len(token_ids)

    def chains(self) -> list[Chain]:
        """What may follow the text, at most one chain of each source."""
        chains = (
            self._chain(follower, follower.match, ()) for follower in self._followers if follower.match is not None
        )
        return [chain for chain in chains if chain.token_ids]

    def chain_after(self, path: Sequence[int]) -> Chain | None:
        """What may follow a draft path that no source has said, if its last tokens have stood somewhere before."""
        best: Chain | None = None
        for follower in self._followers:
            match = follower.index.find(self._tail(path), len(follower.index))
            if match is not None:
                chain = self._chain(follower, match, path)
                if chain.token_ids and (best is None or chain.log_probs[0] > best.log_probs[0]):
                    best = chain
        return best

    def _chain(self, follower: Follower, match: Match | None, path: Sequence[int]) -> Chain:
        """What a source says after a match; where the grammar refuses it, after another place whose token it admits."""
        supposed, log_probs = [*path], list[float]()
        while match is not None:
            position, probability = self._num_committed + len(supposed), exp(sum(log_probs))
            chain = follower.chain(match, supposed, position, self._is_final, probability)
            num_admitted = self._grammar.num_admitted(supposed, chain.token_ids)
            supposed += chain.token_ids[:num_admitted]
            log_probs += chain.log_probs[:num_admitted]
            if num_admitted == len(chain.token_ids) or len(log_probs) >= MAX_CHAIN:
                break
            is_admitted = self._grammar.admitted_after(supposed)
            match = follower.index.find(self._tail(supposed), match.position + num_admitted, is_admitted)
        return Chain(follower.source, supposed[len(path) :][:MAX_CHAIN], log_probs[:MAX_CHAIN])

    def _tail(self, path: Sequence[int] = ()) -> Sequence[int]:
        return [*self._text.index.token_ids[-MAX_MATCH:], *path][-MAX_MATCH:]
