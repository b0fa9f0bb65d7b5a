"""Carries IP packets between two TUN devices, each way with the shape of a network profile."""

import asyncio
import contextlib
import os
from collections import deque

from specedge_bench.network.profiles import NetworkProfile
from specedge_bench.network.shape import Flow, Line, Shape

_MAX_PACKET_BYTES = 65_536
_MAX_PACKETS_ON_THE_WAY = 20_000
_MAX_PACKETS_AT_ONCE = 64  # so that the other direction gets its turn
_IPV4 = 4


class PacketLink:
    """Both directions between the edge's device and the verifier's.

    Args:
        edge_device: descriptor of a TUN device, non-blocking.
        verifier_device: likewise.
        profile: see `set_profile`.
        seed: of jitter and loss.
    """

    def __init__(self, edge_device: int, verifier_device: int, profile: NetworkProfile, seed: int = 0) -> None:
        self._up = _OneWay(edge_device, verifier_device, profile.up, 2 * seed)
        self._down = _OneWay(verifier_device, edge_device, profile.down, 2 * seed + 1)

    @property
    def num_bytes_up(self) -> int:
        """Bytes of IP packets, headers included, that the edge has sent; repeated and lost ones count."""
        return self._up.num_bytes

    @property
    def num_bytes_down(self) -> int:
        """Bytes of IP packets, headers included, that the verifier has sent; repeated and lost ones count."""
        return self._down.num_bytes

    def set_profile(self, profile: NetworkProfile) -> None:
        """Changes the shape for what is sent from now on."""
        self._up.line.shape = profile.up
        self._down.line.shape = profile.down

    def start(self) -> None:
        for way in (self._up, self._down):
            way.start()

    def stop(self) -> None:
        for way in (self._up, self._down):
            way.stop()


class _OneWay:
    """From one device to the other, in order."""

    def __init__(self, source: int, sink: int, shape: Shape, seed: int) -> None:
        self.line = Line(shape, seed)
        self.num_bytes = 0
        self._flow = Flow(self.line)
        self._source = source
        self._sink = sink
        self._packets: deque[tuple[float, bytes]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        asyncio.get_running_loop().add_reader(self._source, self._take)

    def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._source)
        if self._timer is not None:
            self._timer.cancel()

    def _take(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(_MAX_PACKETS_AT_ONCE):
            try:
                packet = os.read(self._source, _MAX_PACKET_BYTES)
            except BlockingIOError:
                break
            # What is not IPv4 is the kernel looking for IPv6 routers; it has no place in the counts.
            if packet[0] >> 4 != _IPV4:
                continue
            self.num_bytes += len(packet)
            arrival_s = self._flow.packet_arrival_s(len(packet), loop.time())
            if arrival_s is not None and len(self._packets) < _MAX_PACKETS_ON_THE_WAY:
                self._packets.append((arrival_s, packet))
        if self._timer is None:
            self._deliver()

    def _deliver(self) -> None:
        loop = asyncio.get_running_loop()
        while self._packets and self._packets[0][0] <= loop.time():
            with contextlib.suppress(OSError):  # a full or closed device loses packets, as networks do
                os.write(self._sink, self._packets.popleft()[1])
        self._timer = loop.call_at(self._packets[0][0], self._deliver) if self._packets else None
