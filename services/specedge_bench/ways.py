"""The way from edges to a verifier: real processes joined by a network that is there or one that is made."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from specedge_bench.network.namespaces import Namespaces, Side, joined_namespaces
from specedge_bench.network.profiles import NetworkProfile
from specedge_bench.network.proxy_process import ProxyProcess

HOST = "127.0.0.1"
_EVERYWHERE = "0.0.0.0"


class Way(Protocol):
    """What the processes of one system need to know of the network between them."""

    @property
    def listen_host(self) -> str:
        """Where services listen."""
        ...

    def prefix(self, side: Side) -> list[str]:
        """What to put before the command of a process on the "edge" or "verifier" side."""
        ...

    def verifier_address(self, edge: int) -> str:
        """Where an edge finds the verifier."""
        ...

    def reach(self, side: Side, port: int) -> str:
        """The address, for us, of a port on a side; this way is never shaped."""
        ...

    async def set_profile(self, profile: NetworkProfile) -> None:
        """Changes the network for what is sent from now on."""
        ...

    async def counts(self) -> tuple[int, int] | None:
        """Bytes that have gone to the verifier and back; None where nobody counts."""
        ...


class ProxyWay:
    """All on loopback, each edge behind a proxy process of its own; without proxies, a direct way.

    Args:
        verifier: address of the verifier.
        proxies: one for each edge, or none.
    """

    listen_host = HOST

    def __init__(self, verifier: str, proxies: Sequence[ProxyProcess]) -> None:
        self._verifier = verifier
        self._proxies = proxies

    def prefix(self, side: Side) -> list[str]:
        return []

    def verifier_address(self, edge: int) -> str:
        return f"{HOST}:{self._proxies[edge].port}" if self._proxies else self._verifier

    def reach(self, side: Side, port: int) -> str:
        return f"{HOST}:{port}"

    async def set_profile(self, profile: NetworkProfile) -> None:
        for proxy in self._proxies:
            await proxy.set_profile(profile)

    async def counts(self) -> tuple[int, int] | None:
        counts = [await proxy.counts() for proxy in self._proxies]
        return (sum(up for up, _ in counts), sum(down for _, down in counts)) if counts else None


class NamespaceWay:
    """Two network namespaces; all edges of a system share the shaped link to its verifier."""

    listen_host = _EVERYWHERE

    def __init__(self, namespaces: Namespaces, verifier_port: int) -> None:
        self._namespaces = namespaces
        self._verifier_port = verifier_port

    def prefix(self, side: Side) -> list[str]:
        return self._namespaces.prefix(side)

    def verifier_address(self, edge: int) -> str:
        return f"{self._namespaces.verifier_address}:{self._verifier_port}"

    def reach(self, side: Side, port: int) -> str:
        return f"{HOST}:{self._namespaces.host_port(side, port)}"

    async def set_profile(self, profile: NetworkProfile) -> None:
        await self._namespaces.set_profile(profile)

    async def counts(self) -> tuple[int, int] | None:
        return await self._namespaces.counts()


@contextlib.asynccontextmanager
async def proxied(verifier: str, profile: NetworkProfile | None, num_edges: int, seed: int) -> AsyncIterator[Way]:
    """A proxy for each edge, on the way to a verifier on this machine; none where no network is asked for."""
    proxies: list[ProxyProcess] = []
    try:
        if profile is not None:
            port = int(verifier.rpartition(":")[2])
            for edge in range(num_edges):
                proxies.append(await ProxyProcess.start(port, profile, seed + edge))
        yield ProxyWay(verifier, proxies)
    finally:
        for proxy in proxies:
            await proxy.stop()


@contextlib.asynccontextmanager
async def separated(
    profile: NetworkProfile, verifier_ports: tuple[int, int], edge_ports: Sequence[int], seed: int
) -> AsyncIterator[Way]:
    """Two namespaces.

    Args:
        profile: of the network between them.
        verifier_ports: of gRPC and metrics.
        edge_ports: of HTTP.
        seed: of jitter and loss.
    """
    reachable: list[tuple[Side, int]] = [("verifier", port) for port in verifier_ports]
    reachable += [("edge", port) for port in edge_ports]
    async with joined_namespaces(profile, reachable, seed) as namespaces:
        yield NamespaceWay(namespaces, verifier_ports[0])
