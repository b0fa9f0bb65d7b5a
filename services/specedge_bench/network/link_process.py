"""`python -m specedge_bench.network.link_process PARENT_PID PROFILE SEED [SIDE:PORT ...]`: two network namespaces.

This process makes them, joins them by TUN devices and keeps them alive: when it ends, however it ends, nothing of
them is left. For every SIDE:PORT it listens on a port of the namespace it was started in and leads connections,
unshaped, to that port of the `edge` or the `verifier` side. Its first line is a `LinkAnnouncement` as JSON; then
`counts` is answered by "BYTES_UP BYTES_DOWN", `profile PROFILE` by "ok".
"""

import asyncio
import json
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from specedge.errors import SpecEdgeError
from specedge_bench.network import kernel
from specedge_bench.network.control import ERROR, NetworkProcessFailed, run_precisely, serve_commands
from specedge_bench.network.forwarding import ForwardingProxy
from specedge_bench.network.packet_link import PacketLink
from specedge_bench.network.profiles import profile_from_json

EDGE = "edge"
VERIFIER = "verifier"
ADDRESSES = {EDGE: "10.213.0.1", VERIFIER: "10.213.0.2"}  # of namespaces of our own: they collide with nothing


@dataclass(frozen=True, slots=True)
class LinkAnnouncement:
    """What the other side needs to enter the namespaces.

    Attributes:
        process_id: of the process that holds them.
        descriptors: of that process, for the network namespace of each side.
        has_user_namespace: they belong to a user namespace, which must be entered first.
        ports: where "side:port" is reached from outside.
    """

    process_id: int
    descriptors: dict[str, int]
    has_user_namespace: bool
    ports: dict[str, int]


class _Entrance(ForwardingProxy):
    """Leads connections from outside into a namespace, without any shape."""

    def __init__(self, namespace: int, address: str, target_port: int, listener: socket.socket) -> None:
        super().__init__(target_port)
        self._namespace = namespace
        self._address = address
        self._listener = listener

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._accept, sock=self._listener)
        self.port = self._listener.getsockname()[1]
        return self.port

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await self._connect_to(self._address)
        except ConnectionRefusedError:  # perhaps it listens on the loopback interface alone
            return await self._connect_to("127.0.0.1")

    async def _connect_to(self, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        with kernel.inside(self._namespace):
            inner = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        inner.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(inner, (address, self.target_port))
        except BaseException:
            inner.close()
            raise
        return await asyncio.open_connection(sock=inner)


def make_sides() -> tuple[dict[str, int], dict[str, int], bool]:
    """Makes both namespaces; returns descriptors of them and of their TUN devices, and if a user namespace was needed.

    Raises:
        OSError: this process may not, or the kernel cannot.
    """
    namespaces: dict[str, int] = {}
    devices: dict[str, int] = {}
    has_user_namespace = False
    for side, address in ADDRESSES.items():
        try:
            kernel.leave_for_new(kernel.CLONE_NEWNET)
        except PermissionError:
            kernel.become_owner_of_user_namespace()
            has_user_namespace = True
            kernel.leave_for_new(kernel.CLONE_NEWNET)
        namespaces[side] = kernel.open_own_namespace()
        devices[side] = kernel.open_tun(side, address)
    return namespaces, devices, has_user_namespace


async def _serve(profile_text: str, seed: int, reachable: Sequence[str]) -> int:
    try:
        profile = profile_from_json(profile_text)
        listeners = {name: _listen() for name in reachable}  # before this process leaves the namespace
        namespaces, devices, has_user_namespace = make_sides()
    except (SpecEdgeError, OSError) as error:
        print(f"{ERROR}{error}", flush=True)
        return 2
    link = PacketLink(devices[EDGE], devices[VERIFIER], profile, seed)
    entrances: dict[str, _Entrance] = {}
    for name, listener in listeners.items():
        side, _, port = name.partition(":")
        entrances[name] = _Entrance(namespaces[side], ADDRESSES[side], int(port), listener)

    def answer(line: str) -> str:
        command, _, argument = line.partition(" ")
        if command == "counts":
            return f"{link.num_bytes_up} {link.num_bytes_down}"
        if command == "profile":
            link.set_profile(profile_from_json(argument))
            return "ok"
        raise NetworkProcessFailed(f"unknown command {command!r}; known are counts and profile")

    link.start()
    try:
        ports = {name: await entrance.start() for name, entrance in entrances.items()}
        announcement = LinkAnnouncement(os.getpid(), namespaces, has_user_namespace, ports)
        await serve_commands(json.dumps(asdict(announcement)), answer)
    finally:
        for entrance in entrances.values():
            await entrance.stop()
        link.stop()
    return 0


def _listen() -> socket.socket:
    # With the protocol named, asyncio takes Nagle's delay off the connections that are accepted.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    listener.setblocking(False)
    return listener


def main(arguments: list[str]) -> int:
    parent, profile_text, seed, *reachable = arguments
    return run_precisely(int(parent), _serve(profile_text, int(seed), reachable))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
