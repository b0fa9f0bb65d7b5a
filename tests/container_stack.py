"""The stack of docker-compose.yml as an operator starts it, at ports and in volumes of its own."""

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
from processes import HOST, quiet_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).resolve().parents[1]
UID = 10001
BUILD_S = 3000.0
READY_S = 300.0
COMMAND_S = 120.0
POLL_S = 0.5


def run(command: Sequence[str], environment: Mapping[str, str] | None = None, timeout_s: float = COMMAND_S) -> str:
    """What a command prints; with a failure, what it complains of."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, f"{shlex.join(command)}: exit code {done.returncode}: {done.stdout[-6000:]}"
    return done.stdout


def wait_for(what: str, is_true: Callable[[], bool], timeout_s: float = READY_S) -> None:
    """Asks again and again, until the deadline."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(POLL_S)


@dataclass(frozen=True, slots=True)
class Tools:
    """The commands of this machine.

    Args:
        docker, compose: the client and its compose, as words of a command.
        build_flags: what `docker build` needs here besides.
        base: the Python image that ours are built on.
    """

    docker: tuple[str, ...]
    compose: tuple[str, ...]
    build_flags: tuple[str, ...]
    base: str

    def build(self, dockerfile: str, tag: str, context: str = ".") -> None:
        """Builds an image; BuildKit unless DOCKER_BUILDKIT says otherwise."""
        kit = {"DOCKER_BUILDKIT": os.environ.get("DOCKER_BUILDKIT", "1")}
        flags = [*self.build_flags, "--build-arg", f"PYTHON_IMAGE={self.base}", "-f", dockerfile, "-t", tag]
        run([*self.docker, "build", *flags, context], kit, BUILD_S)

    def inspect(self, thing: str) -> Any:
        """What the daemon knows of an image or a container."""
        return json.loads(run([*self.docker, "inspect", thing]))[0]

    def config(self, files: Sequence[str], variables: Mapping[str, str] | None = None) -> str:
        """What compose makes of several files."""
        return run([*self.compose, *(word for file in files for word in ("-f", file)), "config"], variables)


class Stack:
    """A project of docker-compose.yml.

    Args:
        tools: the commands.
        images: variables of docker-compose.yml that name images.
        overrides: further compose files.
        services: those to start.
    """

    def __init__(
        self, tools: Tools, images: Mapping[str, str], overrides: Sequence[str], services: Sequence[str]
    ) -> None:
        self.tools = tools
        self.services = services
        self.ports = {name: quiet_port() for name in ("EDGE", "EDGE_METRICS", "VERIFIER", "VERIFIER_METRICS")}
        self.ports |= {name: quiet_port() for name in ("PROMETHEUS", "GRAFANA")}
        self._project = f"specedge-test-{os.getpid()}"
        self._environment = {**images, **{f"{name}_LISTEN": f"{HOST}:{port}" for name, port in self.ports.items()}}
        self._files = ["docker-compose.yml", "tests/containers/patient.yml", *overrides]

    def compose(self, *words: str, timeout_s: float = COMMAND_S) -> str:
        """Runs a command of compose in this project."""
        files = [word for file in self._files for word in ("-f", file)]
        return run([*self.tools.compose, "-p", self._project, *files, *words], self._environment, timeout_s)

    def start(self) -> None:
        """Returns when verifier and edge are healthy: compose starts the edge after the verifier is."""
        self.compose("up", "-d", "--no-build", *self.services, timeout_s=READY_S)
        for service in ("verifier", "edge"):
            self.wait_healthy(service)

    def destroy(self) -> None:
        """Removes containers, networks and volumes."""
        self.compose("down", "--volumes", "--timeout", "5")

    def container(self, service: str) -> str:
        """Id of a service's container, running or not."""
        return self.compose("ps", "-q", service).strip().splitlines()[-1]

    def state(self, service: str) -> Any:
        """As `docker inspect` has it: Running, ExitCode, Health."""
        return self.tools.inspect(self.container(service))["State"]

    def wait_healthy(self, service: str) -> None:
        """By the image's own check."""
        is_healthy = lambda: self.state(service)["Health"]["Status"] == "healthy"  # noqa: E731
        try:
            wait_for(f"{service} is healthy", is_healthy)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.logs(service)}") from None

    def execute(self, service: str, *command: str) -> str:
        """What a command prints inside a container, run as the container's user."""
        return run([*self.tools.docker, "exec", self.container(service), *command])

    def stop(self, service: str) -> None:
        """As `docker compose stop`: SIGTERM, and after the service's grace SIGKILL."""
        self.compose("stop", service)

    def kill(self, service: str) -> None:
        """As a crash."""
        run([*self.tools.docker, "kill", self.container(service)])

    def restart(self, service: str) -> None:
        """Starts a container that has ended."""
        run([*self.tools.docker, "start", self.container(service)])

    def limit_cpus(self, service: str, cpus: float) -> None:
        """Bounds the processor time of a running container, to make its answers last."""
        run([*self.tools.docker, "update", "--cpus", f"{cpus:g}", self.container(service)])

    def logs(self, service: str) -> str:
        """What a service has printed, each line behind its time."""
        return run([*self.tools.docker, "logs", "--timestamps", self.container(service)])

    def logged_at(self, service: str, words: str) -> datetime:
        """When a service last printed a line with these words in it."""
        lines = [line for line in self.logs(service).splitlines() if words in line]
        assert lines, f"{service} has not printed {words!r}"
        return datetime.fromisoformat(lines[-1].split(" ", 1)[0])

    @asynccontextmanager
    async def client(self) -> "AsyncIterator[Any]":
        """An official client of the edge, typed as anything."""
        plain = openai.DefaultAsyncHttpxClient(trust_env=False)
        url = f"http://{HOST}:{self.ports['EDGE']}/v1"
        async with openai.AsyncOpenAI(
            base_url=url, api_key="x", max_retries=0, timeout=240, http_client=plain
        ) as client:
            yield client
