"""Several verifiers, each behind a network of its own, and edges that know all of them; real processes on loopback."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from processes import HOST, Edge, Service, Verifier, nothing_held
from resilience.link import Link

from specedge.errors import SpecEdgeError

NUM_BLOCKS = 192
NUM_DRAFT_SLOTS = 8192
GOOD_TIMEOUT_S = 240.0
IDLE_TIMEOUT_S = 60.0
BUSY_TIMEOUT_S = 60.0
POLL_S = 0.1
BROKEN = ("Traceback (most recent call last)", "the engine thread has died", "failed to go on with the answer")
NO_ROOM = "--- Logging error ---"
"""What Python writes, with a traceback, when a record cannot be written: on a full disk that is as it should be."""


class SiteBroken(SpecEdgeError):
    """A process of the site did something that none may do."""


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A line of a process's log; the time is Unix time in seconds."""

    time_s: float
    message: str


@dataclass(frozen=True, slots=True)
class Site:
    """`links[i]` is the only way to `verifiers[i]`."""

    verifiers: tuple[Verifier, ...]
    links: tuple[Link, ...]
    edges: tuple[Edge, ...]

    @property
    def services(self) -> tuple[Verifier | Edge, ...]:
        return *self.verifiers, *self.edges

    def address(self, index: int) -> str:
        """Where edges look for a verifier."""
        return f"{HOST}:{self.links[index].port}"

    async def restart(self, service: Service) -> None:
        """Starts what has ended, and waits until it serves."""
        service.start()
        await asyncio.to_thread(service.wait_ready)

    async def busiest(self) -> int:
        """The index of the verifier that has most sessions; waits until one has any.

        Raises:
            SiteBroken: none has any after BUSY_TIMEOUT_S.
        """
        try:
            async with asyncio.timeout(BUSY_TIMEOUT_S):
                while not any(nums := [await _num_running(verifier) for verifier in self.verifiers]):
                    pass
        except TimeoutError:
            raise SiteBroken(f"no verifier had a session for {BUSY_TIMEOUT_S:g} s") from None
        return nums.index(max(nums))

    async def until_good(self) -> None:
        """Waits until every edge has seen every verifier in good standing: on a busy machine perhaps not all at a time.

        Raises:
            SiteBroken: that takes too long.
        """
        unseen = {(edge, index) for edge in self.edges for index in range(len(self.verifiers))}
        try:
            async with asyncio.timeout(GOOD_TIMEOUT_S):
                while unseen:
                    for edge in {edge for edge, _ in unseen}:
                        states = await edge.verifier_states()
                        unseen -= {(edge, index) for index, state in enumerate(states) if state == "good"}
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            names = sorted(f"{self.address(index)} at {edge.url}" for edge, index in unseen)
            raise SiteBroken(f"not in good standing after {GOOD_TIMEOUT_S:g} s: {', '.join(names)}") from None

    async def until_idle(self) -> None:
        """Waits until no session holds anything anywhere.

        Raises:
            SiteBroken: something is still held after IDLE_TIMEOUT_S.
        """
        try:
            await nothing_held(*self.services, timeout_s=IDLE_TIMEOUT_S)
            for verifier in self.verifiers:
                for state in ("running", "waiting"):
                    num_sessions = await verifier.sample(f"specedge_verifier_sessions_{state}")
                    if num_sessions:
                        raise SiteBroken(f"{verifier.address} has {num_sessions:g} sessions {state} and no user")
        except AssertionError as error:
            raise SiteBroken(str(error)) from None

    def records(self, edge: Edge) -> Iterator[LogRecord]:
        """What an edge has logged."""
        for line in edge.log().splitlines():
            try:
                fields: dict[str, Any] = json.loads(line)
            except ValueError:  # no record, or one that was torn by a full disk
                continue
            yield LogRecord(datetime.fromisoformat(fields["time"]).timestamp(), str(fields["message"]))

    def broken(self) -> Iterator[str]:
        """What the logs say that must never be said."""
        for service in self.services:
            for line in broken_lines(service.log()):
                yield f"{service.address} logged {line[:500]}"


async def _num_running(verifier: Verifier) -> float:
    """Sessions of a verifier; one that is not there has none."""
    try:
        return await verifier.sample("specedge_verifier_sessions_running")
    except httpx.TransportError:
        return 0.0


def broken_lines(log: str) -> Iterator[str]:
    """Errors that nobody expected; a warning may tell of one that was dealt with."""
    before = ""
    for line in log.splitlines():
        is_handled = line.startswith('{"level": "WARNING"') or NO_ROOM in before
        if any(phrase in line for phrase in BROKEN) and not is_handled:
            yield line
        before = line


@asynccontextmanager
async def running_site(
    folder: Path, num_verifiers: int, num_edges: int, edge_flags: Sequence[str] = (), seed: int = 0
) -> AsyncIterator[Site]:
    """A site whose logs lie in `folder`; each verifier writes a step log there as well.

    Raises:
        SiteBroken: a process did not end in order.
    """
    verifiers: list[Verifier] = []
    for index in range(num_verifiers):
        place = folder / f"verifier-{index + 1}"
        place.mkdir()
        flags = ("--num-kv-blocks", str(NUM_BLOCKS), "--step-log", str(place / "steps.jsonl"))
        verifiers.append(Verifier(place, *flags))
    links = tuple(
        Link(int(verifier.address.rpartition(":")[2]), seed + index) for index, verifier in enumerate(verifiers)
    )
    services: list[Service] = [*verifiers]
    try:
        for link in links:
            await link.start()
        addresses = ",".join(f"{HOST}:{link.port}" for link in links)
        edges = tuple(
            Edge(
                folder,
                f"edge-{index + 1}",
                verifiers[0],
                *("--num-draft-slots", str(NUM_DRAFT_SLOTS), "--verifier-address", addresses, *edge_flags),
            )
            for index in range(num_edges)
        )
        services += edges
        for service in services:
            service.start()
        for service in services:
            await asyncio.to_thread(service.wait_ready)
        yield Site(tuple(verifiers), links, edges)
        await _end(services)
    finally:
        for service in services:
            service.destroy()
        for link in links:
            await link.stop()


async def _end(services: Sequence[Service]) -> None:
    left = [service for service in services if service.is_running]
    for service in reversed(left):
        service.signal(signal.SIGTERM)
    for service in left:
        if code := await asyncio.to_thread(service.exit_code):
            raise SiteBroken(f"{service.address} ended with exit code {code}: {service.log()[-2000:]}")
