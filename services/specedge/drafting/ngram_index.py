"""Where in a text the last tokens of another have stood before: hash chains over token pairs, as deflate has them.

Every position is linked to the one before it whose last two tokens have the same hash. So a token costs a few array
operations, a search looks at a bounded number of places, and a text costs twelve bytes a token whatever it says.
"""

from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

MAX_MATCH = 16
"""Tokens of agreement that are told apart; longer ones count as this many."""

MIN_MATCH = 2
"""Agreement of one token is chance more often than not."""

_MAX_PLACES = 16  # looked at in a search
_MAX_BITS = 16  # of a hash; beyond so many pairs chains grow instead of the table
_FIRST, _SECOND = 2654435761, 2246822519  # odd, from xxHash
_MASK = 0xFFFFFFFF


class Match(NamedTuple):
    """A place in the text that agrees with what was searched: where it goes on, and tokens of agreement before that."""

    position: int
    length: int


class NGramIndex:
    """A text that grows at its end and can be searched for the end of another, or for its own.

    Args:
        token_ids: the text so far.
        capacity: tokens it may come to have; more only make searches a little worse.
    """

    def __init__(self, token_ids: Sequence[int], capacity: int = 0) -> None:
        size = max(len(token_ids), capacity, 2)
        self._shift = 32 - min(_MAX_BITS, (size - 1).bit_length())
        self.token_ids = array("q", token_ids)
        self._heads = array("i", [-1]) * (1 << (32 - self._shift))  # by hash: the last position
        self._previous = array("i", [-1])  # by position: the one before with its hash; of the first token there is none
        self._link_all()

    def __len__(self) -> int:
        return len(self.token_ids)

    def append(self, token_id: int) -> None:
        """The text goes on with this token."""
        tokens = self.token_ids
        tokens.append(token_id)
        if len(tokens) > 1:
            code = self._code(tokens[-2], token_id)
            self._previous.append(self._heads[code])
            self._heads[code] = len(tokens) - 1

    def find(self, tail: Sequence[int], near: int, is_admitted: Callable[[int], bool] | None = None) -> Match | None:
        """The longest agreement with the end of `tail`; of several as long, the one whose position is nearest `near`.

        Args:
            tail: the last tokens of a text; may be the end of this one, which does not count as a place of itself.
            near: a position.
            is_admitted: tells of the token that a place goes on with whether the place counts.

        Returns:
            None if nowhere in the text that goes on `MIN_MATCH` tokens agree.
        """
        if len(tail) < MIN_MATCH:
            return None
        tokens, previous, end = self.token_ids, self._previous, len(self.token_ids)
        longest = min(len(tail), MAX_MATCH)
        best, best_length, best_distance = -1, MIN_MATCH - 1, 0
        place = self._heads[self._code(tail[-2], tail[-1])]
        for _ in range(_MAX_PLACES):
            if place < 0:
                break
            length, most = 0, min(longest, place + 1)
            while length < most and tokens[place - length] == tail[-1 - length]:
                length += 1
            if length >= best_length and place + 1 < end and (is_admitted is None or is_admitted(tokens[place + 1])):
                distance = abs(place + 1 - near)
                if length > best_length or (best >= 0 and distance < best_distance):
                    best, best_length, best_distance = place + 1, length, distance
            place = previous[place]
        return Match(best, best_length) if best >= 0 else None

    def _code(self, first: int, second: int) -> int:
        return ((first * _FIRST + second * _SECOND) & _MASK) >> self._shift

    def _link_all(self) -> None:
        """What `append` does, for a text that is there already."""
        num_pairs = len(self.token_ids) - 1
        if num_pairs < 1:
            return
        tokens = np.array(self.token_ids, dtype=np.uint64)
        codes = ((tokens[:-1] * np.uint64(_FIRST) + tokens[1:] * np.uint64(_SECOND)) & np.uint64(_MASK)) >> np.uint64(
            self._shift
        )
        order = codes.argsort(kind="stable")
        is_same = codes[order[1:]] == codes[order[:-1]]
        previous = np.full(num_pairs, -1, dtype=np.int32)
        previous[order[1:]] = np.where(is_same, order[:-1] + 1, -1)
        is_last = np.append(~is_same, True)
        heads = np.frombuffer(self._heads, dtype=np.int32)
        heads[codes[order[is_last]]] = order[is_last] + 1
        self._previous.frombytes(previous.tobytes())
