"""The circuit breaker of one verifier: who fails several times in a row is left alone for a while.

Closed: sessions are opened. After `max_failures` in a row it is open: nobody asks until a pause has passed, which grows
from failure to failure. Then it is half-open: one session may try at a time; its success closes the breaker, its
failure opens it again. Pings and streams are counted apart: a verifier that answers pings but breaks every stream must
be left alone, too.
"""

import random
from enum import StrEnum
from typing import Final, Literal

from edge_agent.verifier_backoff import Backoff

MAX_FAILURES: Final = 3
FIRST_PAUSE_S: Final = 1.0
MAX_PAUSE_S: Final = 10.0
TRIAL_S: Final = 10.0
"""How long a trial keeps others away if nothing is heard of it."""
FORGET_S: Final = 10.0
"""After so long without another one, failures too few to open the breaker are forgotten."""

Kind = Literal["ping", "stream"]


class BreakerState(StrEnum):
    """What may be done."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


class Breaker:
    """Pure: the time is an argument, in seconds of any steady clock."""

    def __init__(self, dice: random.Random | None = None) -> None:
        self._num_failures: dict[Kind, int] = {"ping": 0, "stream": 0}
        self._backoff = Backoff(FIRST_PAUSE_S, MAX_PAUSE_S, dice)
        self._is_trying = False
        self._failed_s = 0.0
        self._retry_s = 0.0

    @property
    def retry_s(self) -> float:
        """When an open breaker may be tried again."""
        return self._retry_s

    @property
    def is_tripped(self) -> bool:
        """Whether it is open or half-open."""
        return max(self._num_failures.values()) >= MAX_FAILURES

    @property
    def is_doubtful(self) -> bool:
        """Whether something failed since the last success."""
        return any(self._num_failures.values())

    def state(self, now_s: float) -> BreakerState:
        """What may be done now."""
        if not self.is_tripped:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now_s < self._retry_s else BreakerState.HALF_OPEN

    def try_out(self, now_s: float) -> None:
        """A trial begins in the half-open state: nobody else tries until it has ended."""
        self._is_trying = True
        self._retry_s = now_s + TRIAL_S

    def opened(self) -> None:
        """A session was admitted: all is well."""
        self._num_failures = {"ping": 0, "stream": 0}
        self._is_trying = False
        self._retry_s = 0.0
        self._backoff.reset()

    def answered(self, now_s: float) -> None:
        """A ping was answered, which says nothing about streams unless these failed long ago."""
        self._num_failures["ping"] = 0
        if not self.is_tripped and now_s - self._failed_s > FORGET_S:
            self.opened()

    def failed(self, kind: Kind, now_s: float) -> None:
        """A ping was not answered, or a stream broke. While it is open nothing is learnt of that."""
        self._num_failures[kind] += 1
        self._failed_s = now_s
        if self.is_tripped and (self._is_trying or now_s >= self._retry_s):
            self._is_trying = False
            self._retry_s = now_s + self._backoff.next_s()
