"""Two network namespaces, one for edges and one for a verifier, with a shaped network between them.

The kernel's own TCP runs over it: slow start, delayed acknowledgements and repetitions are real. Needs Linux, root or
user namespaces, /dev/net/tun, and `nsenter` of util-linux.
"""

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Literal

from specedge.errors import SpecEdgeError
from specedge_bench.network import kernel
from specedge_bench.network.control import ControlledProcess
from specedge_bench.network.link_process import ADDRESSES, LinkAnnouncement
from specedge_bench.network.profiles import NetworkProfile

Side = Literal["edge", "verifier"]

_TRIAL = "from specedge_bench.network.link_process import make_sides; make_sides()"
_TRIAL_TIMEOUT_S = 20.0


class NamespacesUnavailable(SpecEdgeError):
    """Network namespaces cannot be made here; the message says why."""


def namespaces_available() -> str | None:
    """None if network namespaces can be made and joined here, else the reason why not."""
    if sys.platform != "linux":
        return f"network namespaces are a feature of Linux; this is {sys.platform}"
    if shutil.which("nsenter") is None:
        return "the command nsenter (package util-linux) is missing"
    if not Path(kernel.TUN_DEVICE).exists():
        return f"{kernel.TUN_DEVICE} is missing: the kernel has no TUN devices, or the container was given none"
    try:
        trial = subprocess.run([sys.executable, "-c", _TRIAL], capture_output=True, text=True, timeout=_TRIAL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"making two network namespaces took longer than {_TRIAL_TIMEOUT_S:g} s"
    if trial.returncode:
        last_line = (trial.stderr.strip().splitlines() or ["no reason given"])[-1]
        return f"neither root nor user namespaces with access to {kernel.TUN_DEVICE} are to be had here: {last_line}"
    return None


class Namespaces:
    """Both sides, and how processes enter them; see `joined_namespaces`.

    A service on one side listens on 0.0.0.0 or its side's address; the other side finds it at that address.
    """

    edge_address = ADDRESSES["edge"]
    verifier_address = ADDRESSES["verifier"]

    def __init__(self, process: ControlledProcess) -> None:
        self._process = process
        self._announcement = LinkAnnouncement(**json.loads(process.announcement))

    def prefix(self, side: Side) -> list[str]:
        """What to put before a command so that it runs on that side.

        It replaces itself by the command, so process id and parent are the command's own.
        """
        files = f"/proc/{self._announcement.process_id}"
        user = [f"--user={files}/ns/user", "--preserve-credentials"] if self._announcement.has_user_namespace else []
        return ["nsenter", *user, f"--net={files}/fd/{self._announcement.descriptors[side]}", "--"]

    def host_port(self, side: Side, port: int) -> int:
        """The port on our own 127.0.0.1 that leads, without delay, to a port of that side.

        Raises:
            KeyError: it was not among the `reachable` ones.
        """
        return self._announcement.ports[f"{side}:{port}"]

    async def counts(self) -> tuple[int, int]:
        """Bytes of IP packets, headers included, sent by the edge side and by the verifier side.

        Raises:
            NetworkProcessFailed: the process that joins them has ended.
        """
        num_up, num_down = (await self._process.ask("counts")).split()
        return int(num_up), int(num_down)

    async def set_profile(self, profile: NetworkProfile) -> None:
        """Changes the shape of the network for what is sent from now on.

        Raises:
            NetworkProcessFailed: the process that joins them has ended.
        """
        await self._process.ask(f"profile {profile.to_json()}")


@contextlib.asynccontextmanager
async def joined_namespaces(
    profile: NetworkProfile, reachable: Sequence[tuple[Side, int]] = (), seed: int = 0
) -> AsyncIterator[Namespaces]:
    """Makes both namespaces for the block; end the processes inside before it ends.

    Args:
        profile: of the network between them.
        reachable: ports of the sides to be reached from our own namespace.
        seed: of jitter and loss.

    Raises:
        NamespacesUnavailable: they cannot be made here.
        NetworkProcessFailed: the process that joins them did not start.
    """
    if reason := await asyncio.to_thread(namespaces_available):
        raise NamespacesUnavailable(f"no network namespaces here: {reason}")
    names = [f"{side}:{port}" for side, port in reachable]
    process = await ControlledProcess.start(
        "specedge_bench.network.link_process", [profile.to_json(), str(seed), *names]
    )
    try:
        yield Namespaces(process)
    finally:
        await process.stop()
