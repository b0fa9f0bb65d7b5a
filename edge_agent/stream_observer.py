"""What can be watched about the streams to a verifier; metrics plug in here."""

from collections import Counter
from typing import Protocol

from specedge.wire.messages import SessionOpened, Verdict


class StreamObserver(Protocol):
    """Is told what happens on the streams; every method is called on the event loop thread and returns at once."""

    def opened(self, message: SessionOpened, open_s: float, num_resumed_tokens: int) -> None:
        """A session was admitted `open_s` after it was asked for; it began with so many tokens already committed."""

    def sent(self, num_bytes: int, num_nodes: int) -> None:
        """A message left; its gRPC and HTTP/2 framing counts, `num_nodes` is 0 for OpenSession."""

    def received(self, num_bytes: int) -> None:
        """A message arrived; its framing counts."""

    def verdict(self, message: Verdict, round_s: float | None) -> None:
        """A verdict arrived, `round_s` after the first draft sent since the verdict before it; None without draft."""

    def round_trip(self, seconds: float) -> None:
        """The verifier answered a ping."""

    def drafts_refused(self) -> None:
        """The verifier refused an answer's drafts; it goes on without."""

    def broken(self, reason: str) -> None:
        """A stream ended before its answer did; it is opened again after a while."""

    def failed_over(self) -> None:
        """An answer goes on at another verifier."""

    def gave_up(self, reason: str) -> None:
        """No verifier answered before the deadline; the user sees an error."""

    def handshake_failed(self, reason: str) -> None:
        """TLS with the verifier did not come about; `reason` is one of `specedge.tls.diagnosis.REASONS`."""


class StreamCounters:
    """A StreamObserver that counts."""

    def __init__(self) -> None:
        self.num_opened = 0
        self.num_resumed_tokens = 0
        self.num_cached_tokens = 0
        self.num_bytes_sent = 0
        self.num_bytes_received = 0
        self.num_nodes_sent = 0
        self.num_verdicts = 0
        self.num_pings = 0
        self.num_drafts_refused = 0
        self.num_broken = 0
        self.num_failed_over = 0
        self.num_given_up = 0
        self.failed_handshakes: Counter[str] = Counter()

    def opened(self, message: SessionOpened, open_s: float, num_resumed_tokens: int) -> None:
        """Counts sessions and the tokens they began with."""
        self.num_opened += 1
        self.num_resumed_tokens += num_resumed_tokens
        self.num_cached_tokens += message.num_cached_tokens

    def sent(self, num_bytes: int, num_nodes: int) -> None:
        """Counts bytes and nodes."""
        self.num_bytes_sent += num_bytes
        self.num_nodes_sent += num_nodes

    def received(self, num_bytes: int) -> None:
        """Counts bytes."""
        self.num_bytes_received += num_bytes

    def verdict(self, message: Verdict, round_s: float | None) -> None:
        """Counts verdicts."""
        self.num_verdicts += 1

    def round_trip(self, seconds: float) -> None:
        """Counts pings."""
        self.num_pings += 1

    def drafts_refused(self) -> None:
        """Counts fallbacks to plain decoding."""
        self.num_drafts_refused += 1

    def broken(self, reason: str) -> None:
        """Counts reconnections."""
        self.num_broken += 1

    def failed_over(self) -> None:
        """Counts failovers."""
        self.num_failed_over += 1

    def gave_up(self, reason: str) -> None:
        """Counts answers lost."""
        self.num_given_up += 1

    def handshake_failed(self, reason: str) -> None:
        """Counts by reason."""
        self.failed_handshakes[reason] += 1
