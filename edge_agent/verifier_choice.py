"""Which verifier the next session is opened on: the less loaded of two random ones among those in the best standing.

Two random choices balance nearly as well as knowing every load would, and keep edges that act on the same old hints
from all choosing the same one (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing").
"""

import random
from collections.abc import Sequence
from enum import IntEnum
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Standing(IntEnum):
    """How a verifier is seen; the lowest number is asked first."""

    GOOD = 0
    DOUBTED = 1  # something failed lately
    BUSY = 2  # it refused a session lately because it was full
    LOST = 3  # its breaker is open, or it refuses this edge
    AWAY = 4  # it says that it serves nothing

    @property
    def is_fit(self) -> bool:
        """Whether leaving another verifier for it makes sense."""
        return self <= Standing.DOUBTED


class Candidate(NamedTuple, Generic[T]):
    """A verifier that could be asked.

    Attributes:
        standing: how it is seen.
        is_tried: the session has been there since its last token.
        load: its sessions by its places.
    """

    verifier: T
    standing: Standing
    is_tried: bool
    load: float


def choose(candidates: Sequence[Candidate[T]], dice: random.Random) -> T | None:
    """The one to ask; None where there is none."""
    if not candidates:
        return None
    best = min((candidate.standing, candidate.is_tried) for candidate in candidates)
    equals = [candidate for candidate in candidates if (candidate.standing, candidate.is_tried) == best]
    pair = dice.sample(equals, min(2, len(equals)))
    return min(pair, key=lambda candidate: candidate.load).verifier
