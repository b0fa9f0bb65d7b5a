"""Frames of sizes and at times that tell an observer of an encrypted link nothing about what is in them."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import floor

from specedge.verification.v1 import verification_pb2 as pb

Message = pb.GenerateRequest | pb.GenerateResponse

_MAX_PIECE_BYTES = 129
"""A piece of padding with its tag and a length of one byte."""
_BYTES_BESIDE_NODES = 32
_BYTES_PER_NODE = 3 + 2 + 1
"""Of a draft node: token id, parent's distance, score."""


class Cadence:
    """Ticks at the multiples of an interval after its beginning, whatever happens in between.

    Args:
        interval_s: above 0.
        clock: steady time in seconds.
        sleep: waits for seconds of that time.
    """

    def __init__(
        self,
        interval_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._sleep = sleep
        self._began_s = clock()
        self._last = 0

    async def tick(self) -> None:
        """Returns at the next multiple; one that has gone by is left out, and none comes twice."""
        self._last = self._next()
        await self._sleep_until(self._began_s + self._last * self._interval_s)

    async def before_tick(self, lead_s: float) -> None:
        """Returns so many seconds before the next multiple, at once when that has gone by."""
        await self._sleep_until(self._began_s + self._next() * self._interval_s - lead_s)

    def _next(self) -> int:
        passed = floor((self._clock() - self._began_s) / self._interval_s)
        return max(passed, self._last) + 1

    async def _sleep_until(self, time_s: float) -> None:
        await self._sleep(max(0.0, time_s - self._clock()))


@dataclass(frozen=True, slots=True)
class FrameShape:
    """How the messages of a stream leave this process.

    Args:
        multiple_bytes: each is padded to a multiple of it; 0 pads none.
        interval_s: at most one leaves in each such interval, and padding where there is none; 0 sends at once. Needs
            multiple_bytes.
    """

    multiple_bytes: int = 0
    interval_s: float = 0.0

    def pad(self, message: Message) -> None:
        """Makes the message as long as the next multiple that is at least 2 bytes away: padding takes no fewer."""
        if not self.multiple_bytes:
            return
        num_left = 2 + -(message.ByteSize() + 2) % self.multiple_bytes
        while num_left:
            num_piece = min(num_left, _MAX_PIECE_BYTES)
            if num_left - num_piece == 1:
                num_piece -= 1
            message.padding.append(bytes(num_piece - 2))
            num_left -= num_piece

    def cadence(self) -> Cadence | None:
        """When messages of a stream that begins now may leave; None is at any time."""
        return Cadence(self.interval_s) if self.interval_s else None

    def max_nodes(self, limit: int) -> int:
        """Most draft nodes in one message, so that paced ones are of one length as well."""
        if not self.interval_s:
            return limit
        return min(limit, max(1, (self.multiple_bytes - _BYTES_BESIDE_NODES) // _BYTES_PER_NODE))


UNSHAPED = FrameShape()


def is_padding(message: Message) -> bool:
    """Whether there is nothing in it but padding."""
    return bool(message.padding) and message.WhichOneof("message") is None
