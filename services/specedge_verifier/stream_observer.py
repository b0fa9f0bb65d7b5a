"""What can be watched about the streams of edges; metrics plug in here."""

from typing import Literal, Protocol

Direction = Literal["up", "down"]
"""Up is from the edges."""


class StreamObserver(Protocol):
    """Is told what happens on the streams; every method is called on the event loop thread and returns at once."""

    def wire_bytes(self, direction: Direction, num_bytes: int) -> None:
        """A message passed; its framing counts."""

    def rejected(self, reason: str) -> None:
        """A session was refused, or ended with an error; `reason` is the name of a gRPC status."""


class NobodyWatches:
    """A StreamObserver that ignores everything."""

    def wire_bytes(self, direction: Direction, num_bytes: int) -> None:
        """Nothing."""

    def rejected(self, reason: str) -> None:
        """Nothing."""
