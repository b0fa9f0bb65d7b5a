"""How often a looked-up token has come true, by its source and by how many tokens had agreed before it.

A chain's k-th token is asked about as if the k - 1 before it had come true, so by then so many more have agreed. Every
committed token is evidence, sent or not: a source that is of no use costs no node to find out about.
"""

from typing import Final, Literal, get_args

from specedge.drafting.ngram_index import MAX_MATCH

Source = Literal["lookup", "prediction"]
"""The text so far, or what the user expects the answer to be."""

SOURCES: Final = get_args(Source)

_PRIOR: Final[dict[Source, tuple[float, float]]] = {"lookup": (0.1, 0.85), "prediction": (0.2, 0.95)}
"""The probability after no agreement, and the one it approaches with more of it."""

_PRIOR_WEIGHT = 8.0  # tokens the prior counts for
_MAX_WEIGHT = 400.0
_SESSION_WEIGHT = 4.0  # tokens of a session that what is known from all of them counts for
_MAX_SESSION_WEIGHT = 32.0


class Counts:
    """Tokens seen and tokens right after each number of agreeing tokens, [0, MAX_MATCH]; the oldest fade."""

    __slots__ = ("_max_weight", "right", "seen")

    def __init__(self, max_weight: float) -> None:
        self._max_weight = max_weight
        self.seen = [0.0] * (MAX_MATCH + 1)
        self.right = [0.0] * (MAX_MATCH + 1)

    def observe(self, length: int, is_right: bool) -> None:
        """Takes in whether the token after `length` agreeing ones came true."""
        seen = self.seen[length] + 1.0
        shrink = min(1.0, self._max_weight / seen)
        self.seen[length] = seen * shrink
        self.right[length] = (self.right[length] + is_right) * shrink


class LookupAcceptance:
    """What all sessions of a process have seen."""

    def __init__(self) -> None:
        self._counts = {source: Counts(_MAX_WEIGHT) for source in SOURCES}

    def observe(self, source: Source, length: int, is_right: bool) -> None:
        """Takes in a committed token that the source had an opinion about."""
        self._counts[source].observe(length, is_right)

    def probability(self, source: Source, length: int) -> float:
        """That the token after `length` agreeing ones comes true, over all sessions."""
        least, most = _PRIOR[source]
        prior = most - (most - least) / (1.0 + length / 2.0)
        counts = self._counts[source]
        return (counts.right[length] + _PRIOR_WEIGHT * prior) / (counts.seen[length] + _PRIOR_WEIGHT)


class SessionAcceptance:
    """What one session has seen of one source, on top of what all have.

    Args:
        shared: what all have; learns too.
        source: the source.
    """

    def __init__(self, shared: LookupAcceptance, source: Source) -> None:
        self._shared = shared
        self._source: Source = source
        self._counts = Counts(_MAX_SESSION_WEIGHT)

    def observe(self, length: int, is_right: bool) -> None:
        """Takes in a committed token that the source had an opinion about."""
        length = min(length, MAX_MATCH)
        self._counts.observe(length, is_right)
        self._shared.observe(self._source, length, is_right)

    def probability(self, length: int) -> float:
        """That the token after `length` agreeing ones comes true."""
        length = min(length, MAX_MATCH)
        prior = _SESSION_WEIGHT * self._shared.probability(self._source, length)
        return (self._counts.right[length] + prior) / (self._counts.seen[length] + _SESSION_WEIGHT)
