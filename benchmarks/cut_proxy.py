"""A TCP proxy that cuts its connections at random: after some bytes, even within a message, or after some time."""

import asyncio
import contextlib
from dataclasses import dataclass
from math import exp, log
from random import Random

from specedge_bench.network.forwarding import CHUNK_BYTES, Direction, End, ForwardingProxy


@dataclass(frozen=True, slots=True)
class CutSettings:
    """How long connections live.

    Each one draws a limit in bytes, both directions together, and every other one a limit in seconds as well, both
    uniform in the logarithm.

    Attributes:
        min_bytes, max_bytes: range of the limit in bytes.
        min_s, max_s: range of the limit in seconds.
        max_linger_s: for up to so long the server is left with a dead connection, which it does not know to be dead.
    """

    min_bytes: int = 600
    max_bytes: int = 15_000
    min_s: float = 0.05
    max_s: float = 2.0
    max_linger_s: float = 0.2


class CutProxy(ForwardingProxy):
    """Forwards to 127.0.0.1:`target_port` and counts in `num_cuts` what it has cut."""

    def __init__(self, target_port: int, settings: CutSettings, seed: int) -> None:
        super().__init__(target_port)
        self.num_cuts = 0
        self._settings = settings
        self._random = Random(seed)

    async def _carry(self, client: End, target: End) -> None:
        settings, draw = self._settings, self._random
        limit_bytes = round(exp(draw.uniform(log(settings.min_bytes), log(settings.max_bytes))))
        limit_s = exp(draw.uniform(log(settings.min_s), log(settings.max_s))) if draw.random() < 0.5 else None
        linger_s = max(0.0, draw.uniform(-settings.max_linger_s, settings.max_linger_s))
        allowance = _Allowance(limit_bytes)
        pumps = {
            asyncio.create_task(self._forward_within(allowance, client.reader, target.writer, Direction.UP)),
            asyncio.create_task(self._forward_within(allowance, target.reader, client.writer, Direction.DOWN)),
        }
        try:
            done, _ = await asyncio.wait(pumps, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if not done or allowance.is_used_up:
                self.num_cuts += 1
                client.writer.transport.abort()
                await asyncio.sleep(linger_s)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _forward_within(
        self, allowance: "_Allowance", source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: Direction
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while not allowance.is_used_up and (data := allowance.cut(await source.read(CHUNK_BYTES))):
                self._count(direction, data)
                sink.write(data)
                await sink.drain()


class _Allowance:
    """How many bytes a connection may still carry, both directions together."""

    def __init__(self, num_bytes: int) -> None:
        self._num_left = num_bytes

    @property
    def is_used_up(self) -> bool:
        return self._num_left <= 0

    def cut(self, data: bytes) -> bytes:
        """As much of the data as is allowed; it counts."""
        data = data[: max(0, self._num_left)]
        self._num_left -= len(data)
        return data
