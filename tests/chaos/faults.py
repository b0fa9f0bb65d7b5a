"""What is done to a site, and how it is mended."""

import asyncio
import resource
import signal
import sys
import time
from dataclasses import dataclass, replace

from chaos.schedule import BUSIEST, Fault, Kind
from resilience.site import Site, SiteBroken

from specedge_bench.network.forwarding import Direction
from specedge_bench.network.profiles import NetworkProfile

FAR = NetworkProfile("far away", rtt_ms=400.0, jitter_ms=60.0, loss=0.02)
THIN = NetworkProfile("thin", rtt_ms=40.0, up_mbit_s=0.1, down_mbit_s=0.1)


@dataclass(frozen=True, slots=True)
class Event:
    """A fault that happened.

    Attributes:
        fault: its victim is an index.
        address: where edges look for the victim.
        began_s, mended_s: Unix time in seconds; a process is mended when it serves again.
        is_blackout: no verifier was left.
    """

    fault: Fault
    address: str
    began_s: float
    mended_s: float
    is_blackout: bool


def why_disks_stay() -> str | None:
    """Why disks cannot be filled here; None where they can."""
    return None if hasattr(resource, "prlimit") else f"{sys.platform} has no prlimit"


async def inflict(site: Site, fault: Fault, is_blackout: bool = False) -> Event:
    """Inflicts a fault at its time, and mends it.

    Raises:
        SiteBroken: a process did not end as it should, or nobody asks where the busiest verifier is to be struck.
    """
    await asyncio.sleep(fault.after_s)
    if fault.victim == BUSIEST:
        fault = replace(fault, victim=await site.busiest())
    began_s = time.time()
    match fault.kind:
        case Kind.KILL:
            await _end_process(site, fault, signal.SIGKILL, -signal.SIGKILL)
        case Kind.TERMINATE:
            await _end_process(site, fault, signal.SIGTERM, 0)
        case Kind.STOP:
            site.verifiers[fault.victim].signal(signal.SIGSTOP)
            await asyncio.sleep(fault.lasts_s)
            site.verifiers[fault.victim].signal(signal.SIGCONT)
        case Kind.DISK:
            _limit_files(site, 0)
            await asyncio.sleep(fault.lasts_s)
            _limit_files(site, resource.RLIM_INFINITY)
        case _:
            await _disturb_network(site, fault)
            await asyncio.sleep(fault.lasts_s)
            site.links[fault.victim].mend()
    return Event(fault, site.address(fault.victim), began_s, time.time(), is_blackout)


async def _end_process(site: Site, fault: Fault, number: signal.Signals, expected: int) -> None:
    verifier = site.verifiers[fault.victim]
    if not verifier.is_running:
        raise SiteBroken(f"{verifier.address} had ended before it got {number.name}: {verifier.log()[-2000:]}")
    verifier.signal(number)
    code = await asyncio.to_thread(verifier.exit_code)
    if code != expected:
        raise SiteBroken(f"{verifier.address} ended with {code} after {number.name}: {verifier.log()[-2000:]}")
    await asyncio.sleep(fault.lasts_s)
    await site.restart(verifier)


def _limit_files(site: Site, num_bytes: int) -> None:
    """Files of all processes, which are logs, grow up to so much: beyond, a write fails as on a full disk."""
    for service in site.services:
        hard = resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE)[1]
        soft = hard if num_bytes == resource.RLIM_INFINITY else num_bytes
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (soft, hard))


async def _disturb_network(site: Site, fault: Fault) -> None:
    link = site.links[fault.victim]
    match fault.kind:
        case Kind.CUT:
            link.lose()
        case Kind.SILENCE:
            link.silence(*Direction)
        case Kind.SILENCE_UP:
            link.silence(Direction.UP)
        case Kind.SILENCE_DOWN:
            link.silence(Direction.DOWN)
        case Kind.HALF_CLOSE_UP:
            await link.half_close(Direction.UP)
        case Kind.HALF_CLOSE_DOWN:
            await link.half_close(Direction.DOWN)
        case Kind.DELAY:
            link.profile = FAR
        case Kind.THROTTLE:
            link.profile = THIN
        case _:
            raise AssertionError(fault.kind)
