"""What a verifier's last refusal says about the next request: for a moment the edge refuses what it would refuse, too.

So a crowd costs the verifier a few openings a second, and the edge neither streams nor drafts for who gets nothing.
"""

from dataclasses import dataclass
from typing import Final

from specedge.errors import CapacityExceeded

TRUST_S: Final = 0.5
"""How long: then all ask again, for there may be room before it was predicted. That another one has just begun does not
shorten it: it is the queue that was full, and others stand in it."""
LEAST_S: Final = 0.05
"""Shorter times are told to nobody: one asks."""


@dataclass(frozen=True, slots=True)
class KnownRefusal:
    """A refusal for lack of room.

    Attributes:
        error: as it came.
        num_tokens: of the smallest prompt that meets it, as far as is known.
        priority: of the request that met it.
        came_s: when, in seconds of the event loop.
    """

    error: CapacityExceeded
    num_tokens: int
    priority: int
    came_s: float

    @property
    def until_s(self) -> float:
        """When there should be room."""
        return self.came_s + self.error.retry_after_s

    def meets(self, num_tokens: int, priority: int, now_s: float) -> CapacityExceeded | None:
        """What another request is told now; None: it has to ask."""
        passed_s = now_s - self.came_s
        if passed_s >= min(TRUST_S, self.error.retry_after_s - LEAST_S):
            return None
        if num_tokens < self.num_tokens or priority > self.priority:
            return None
        return type(self.error)(str(self.error), self.error.retry_after_s - passed_s)
