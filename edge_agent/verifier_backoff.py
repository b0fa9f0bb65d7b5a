"""Pauses between attempts, jittered so that edges that failed together do not try again together."""

import random


class Backoff:
    """Growing pauses between attempts, 100 ms to 5 s by default, each shortened at random by up to a half."""

    def __init__(self, first_s: float = 0.1, max_s: float = 5.0, dice: random.Random | None = None) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._next_s = first_s
        self._dice = dice or random.Random()

    def reset(self) -> None:
        """Starts again with the first pause: the last attempt succeeded."""
        self._next_s = self._first_s

    def next_s(self) -> float:
        """The next pause, in seconds."""
        pause_s = self._next_s * self._dice.uniform(0.5, 1.0)
        self._next_s = min(self._next_s * 2, self._max_s)
        return pause_s
