"""Images and a running stack, made once. What is needed and missing is an error here, never a skipped test.

Environment: DOCKER (command, default docker), DOCKER_COMPOSE (default `docker compose`, else docker-compose),
DOCKER_BUILD_FLAGS, PYTHON_IMAGE (base of our images), COMPOSE_OVERRIDES (further compose files, separated by colons);
STAND_INS=1 where the official images of Prometheus and Grafana cannot be pulled: Debian's Prometheus is built instead,
and the test of Grafana says that it was not run.
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from container_stack import Stack, Tools

SERVER, EDGE, PROMETHEUS = (f"specedge-test-{name}" for name in ("verifier", "edge", "prometheus"))


def _works(*command: str) -> bool:
    found = shutil.which(command[0]) is not None
    return found and subprocess.run(command, capture_output=True, timeout=60).returncode == 0


@pytest.fixture(scope="session")
def has_stand_ins() -> bool:
    return os.environ.get("STAND_INS", "") not in ("", "0", "no")


@pytest.fixture(scope="session")
def tools() -> Tools:
    docker = tuple(shlex.split(os.environ.get("DOCKER") or "docker"))
    wanted = os.environ.get("DOCKER_COMPOSE")
    choices = [tuple(shlex.split(wanted))] if wanted else [(*docker, "compose"), ("docker-compose",)]
    compose = next((choice for choice in choices if _works(*choice, "version")), None)
    if not _works(*docker, "info"):
        pytest.fail(f"`{shlex.join(docker)} info` fails: Docker with a running daemon is needed (DOCKER, DOCKER_HOST)")
    if compose is None:
        pytest.fail(f"Docker Compose is needed; none of {[shlex.join(choice) for choice in choices]} works")
    base = os.environ.get("PYTHON_IMAGE") or "python:3.11-slim-bookworm"
    return Tools(docker, compose, tuple(shlex.split(os.environ.get("DOCKER_BUILD_FLAGS", ""))), base)


@pytest.fixture(scope="session")
def images(tools: Tools, has_stand_ins: bool) -> dict[str, str]:
    """Builds; names by the variables that docker-compose.yml takes."""
    tools.build("Dockerfile.server", SERVER)
    tools.build("Dockerfile.edge", EDGE)
    built = {"VERIFIER_IMAGE": SERVER, "EDGE_IMAGE": EDGE}
    if has_stand_ins:
        folder = "tests/containers"
        tools.build(f"{folder}/Dockerfile.prometheus", PROMETHEUS, folder)
        built["PROMETHEUS_IMAGE"] = PROMETHEUS
    return built


@pytest.fixture(scope="session")
def stack(tools: Tools, images: dict[str, str], has_stand_ins: bool) -> Iterator[Stack]:
    """Verifier, edge, Prometheus and, unless there are stand-ins, Grafana."""
    overrides = [file for file in os.environ.get("COMPOSE_OVERRIDES", "").split(":") if file]
    services = ["verifier", "edge", "prometheus", *([] if has_stand_ins else ["grafana"])]
    stack = Stack(tools, images, overrides, services)
    try:
        stack.start()
        yield stack
    finally:
        stack.destroy()
