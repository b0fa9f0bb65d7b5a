"""How busy a verifier is, as it tells in the trailing metadata of every answer to a health check."""

from collections.abc import Iterable
from typing import Final, NamedTuple, Self

from specedge.wire.status import Metadata

SESSIONS_KEY: Final = "specedge-sessions"

_MAX_CHARS: Final = 32


class LoadHint(NamedTuple):
    """Sessions of all edges, running and waiting, and how many run at once: on the wire "12/64"."""

    num_sessions: int
    max_batch_size: int

    @property
    def metadata(self) -> Metadata:
        """As it is sent."""
        return ((SESSIONS_KEY, f"{self.num_sessions}/{self.max_batch_size}"),)

    @classmethod
    def find(cls, metadata: Iterable[tuple[str, str | bytes]] | None) -> Self | None:
        """The hint in an answer's metadata; None where there is none or it makes no sense: it is only a hint."""
        for key, value in metadata or ():
            if key == SESSIONS_KEY and isinstance(value, str) and len(value) <= _MAX_CHARS and value.isascii():
                sessions, _, size = value.partition("/")
                if sessions.isdecimal() and size.isdecimal() and int(size):
                    return cls(int(sessions), int(size))
        return None
