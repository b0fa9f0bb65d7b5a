"""`python -m specedge_bench.network.proxy_process PARENT_PID TARGET_PORT PROFILE [SEED]`: the proxy in its own process.

So it neither waits for the load generator nor takes time from it. PROFILE is a name or a profile as JSON. The first
line is the port it listens on; then `counts` is answered by "BYTES_UP BYTES_DOWN", `profile PROFILE` by "ok".
"""

import sys
from typing import Self

from specedge.errors import SpecEdgeError
from specedge_bench.network.control import ERROR, ControlledProcess, NetworkProcessFailed, run_precisely, serve_commands
from specedge_bench.network.profiles import NetworkProfile, profile_from_json
from specedge_bench.network.proxy import NetworkProxy


class ProxyProcess:
    """A network proxy in a process of its own; see `start`."""

    def __init__(self, process: ControlledProcess) -> None:
        self._process = process

    @classmethod
    async def start(cls, target_port: int, profile: NetworkProfile, seed: int = 0) -> Self:
        """Starts it for 127.0.0.1:`target_port`.

        Raises:
            NetworkProcessFailed: it did not start.
        """
        arguments = [str(target_port), profile.to_json(), str(seed)]
        return cls(await ControlledProcess.start("specedge_bench.network.proxy_process", arguments))

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return int(self._process.announcement)

    @property
    def process_id(self) -> int:
        return self._process.process_id

    async def counts(self) -> tuple[int, int]:
        """Bytes that have arrived for the target, and from it.

        Raises:
            NetworkProcessFailed: the process has ended.
        """
        num_up, num_down = (await self._process.ask("counts")).split()
        return int(num_up), int(num_down)

    async def set_profile(self, profile: NetworkProfile) -> None:
        """Changes the shape for what arrives from now on.

        Raises:
            NetworkProcessFailed: the process has ended.
        """
        await self._process.ask(f"profile {profile.to_json()}")

    async def stop(self) -> None:
        """Closes its connections and ends the process."""
        await self._process.stop()


async def _serve(proxy: NetworkProxy) -> int:
    def answer(line: str) -> str:
        command, _, argument = line.partition(" ")
        if command == "counts":
            return f"{proxy.num_bytes_up} {proxy.num_bytes_down}"
        if command == "profile":
            proxy.profile = profile_from_json(argument)
            return "ok"
        raise NetworkProcessFailed(f"unknown command {command!r}; known are counts and profile")

    port = await proxy.start()
    try:
        await serve_commands(str(port), answer)
    finally:
        await proxy.stop()
    return 0


async def _main(target_port: int, profile_text: str, seed: int) -> int:
    try:
        profile = profile_from_json(profile_text)
    except SpecEdgeError as error:
        print(f"{ERROR}{error}", flush=True)
        return 2
    return await _serve(NetworkProxy(target_port, profile, seed=seed))


def main(arguments: list[str]) -> int:
    parent, target_port, profile_text, *rest = arguments
    return run_precisely(int(parent), _main(int(target_port), profile_text, int(rest[0]) if rest else 0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
