"""The shaping law: when does what is sent at t arrive at the other end of a line?

Rule 1. A line with a rate sends one thing after the other: sending begins when the line is free, and takes size / rate.
Rule 2. What has been sent travels for the delay, give or take up to the jitter, and never less than nothing.
Rule 3. Nothing overtakes: within a flow, arrivals keep the order of sending.
Rule 4. A lost packet has used the line. IP packets are gone (None). A TCP stream repeats its own: the wait for the
        repetition is added, and by rule 3 all that follows waits too.

Times are seconds on the caller's clock, real or virtual; calls are made in the order of that clock.
"""

from dataclasses import dataclass
from random import Random

PAYLOAD_BYTES = 1448  # of a full TCP packet at an MTU of 1500, timestamps on
HEADER_BYTES = 52  # IP and TCP with timestamps
RETRANSMISSION_TIMER_S = 0.2  # Linux waits at least this long beyond the round-trip time
NUM_DUPLICATES = 3  # packets that must arrive behind a lost one before the sender repeats it without the timer
MAX_BACKLOG_S = 0.5  # what a router's buffer holds, as time on the line; packets beyond are dropped


@dataclass(frozen=True, slots=True)
class Shape:
    """One direction of a network.

    Attributes:
        delay_s: one way.
        jitter_s: the largest deviation from it, uniformly distributed.
        bytes_per_s: rate of the line; None is without limit.
        loss: probability that a packet is lost.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float | None = None
    loss: float = 0.0


class Line:
    """One direction as all its flows share it: its rate and its chances.

    Args:
        shape: may be exchanged at any time, for what is sent from then on.
        seed: of jitter and loss.
    """

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        self.shape = shape
        self._random = Random(seed)
        self._free_s = float("-inf")

    def backlog_s(self, now_s: float) -> float:
        """How long something sent now waits for the line."""
        return max(0.0, self._free_s - now_s) if self.shape.bytes_per_s else 0.0

    def occupy(self, num_bytes: int, sent_s: float) -> float:
        """Puts bytes on the line; returns when the last one has been sent (rule 1)."""
        if not self.shape.bytes_per_s:
            return sent_s
        self._free_s = max(sent_s, self._free_s) + num_bytes / self.shape.bytes_per_s
        return self._free_s

    def draw_travel_s(self) -> float:
        """Rule 2."""
        if not self.shape.jitter_s:
            return self.shape.delay_s
        return max(0.0, self.shape.delay_s + self._random.uniform(-self.shape.jitter_s, self.shape.jitter_s))

    def draw_loss(self) -> bool:
        return self.shape.loss > 0 and self._random.random() < self.shape.loss


class Flow:
    """What keeps its order on a line: one TCP connection, or everything for a line of IP packets."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._last_arrival_s = float("-inf")

    def chunk_arrival_s(self, num_bytes: int, sent_s: float) -> float:
        """When all of a piece of a TCP stream has arrived; loss shows as a delay."""
        line = self._line
        num_packets = -(-num_bytes // PAYLOAD_BYTES)
        left_s = line.occupy(num_bytes + num_packets * HEADER_BYTES, sent_s)
        return self._in_order(left_s + line.draw_travel_s() + self._draw_repetition_s(num_packets))

    def packet_arrival_s(self, num_bytes: int, sent_s: float) -> float | None:
        """When an IP packet, headers included, arrives; None if it is lost or the line's buffer is full."""
        line = self._line
        if line.backlog_s(sent_s) > MAX_BACKLOG_S:
            return None
        left_s = line.occupy(num_bytes, sent_s)
        if line.draw_loss():
            return None
        return self._in_order(left_s + line.draw_travel_s())

    def _in_order(self, arrival_s: float) -> float:
        self._last_arrival_s = max(self._last_arrival_s, arrival_s)
        return self._last_arrival_s

    def _draw_repetition_s(self, num_packets: int) -> float:
        """The longest wait for a lost packet: a round trip if enough follow it, else a timer that doubles each time."""
        line, longest_s = self._line, 0.0
        if not line.shape.loss:
            return longest_s
        rtt_s = 2 * line.shape.delay_s
        for num_left in range(num_packets - 1, -1, -1):
            wait_s, timer_s = 0.0, rtt_s + RETRANSMISSION_TIMER_S
            is_noticed_early = num_left >= NUM_DUPLICATES
            while line.draw_loss():
                wait_s += rtt_s if is_noticed_early else timer_s
                timer_s *= 1 if is_noticed_early else 2
                is_noticed_early = False
            longest_s = max(longest_s, wait_s)
        return longest_s
