"""The target's tokens of a step, which may still be on their way, and may never come."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from specedge.node_store import IntArray


class PendingTokens(Protocol):
    """The target's tokens of a step that has been launched."""

    @property
    def is_ready(self) -> bool:
        """Whether `tokens` need not wait for the device."""

    def tokens(self) -> Sequence[int] | IntArray:
        """The target's token after each sampling row: per planned session that samples, its root and its nodes."""


@dataclass(frozen=True, slots=True)
class KnownTokens:
    """Implements `PendingTokens` where there is nothing to wait for."""

    known: Sequence[int] | IntArray

    @property
    def is_ready(self) -> bool:
        """At once."""
        return True

    def tokens(self) -> Sequence[int] | IntArray:
        """What is known."""
        return self.known


@dataclass(frozen=True, slots=True)
class NoTokens:
    """Implements `PendingTokens` for a step that could not begin for want of memory."""

    shortage: str

    @property
    def is_ready(self) -> bool:
        """At once."""
        return True

    def tokens(self) -> Sequence[int] | IntArray:
        """Raises MemoryError."""
        raise MemoryError(self.shortage)
