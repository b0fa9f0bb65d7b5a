"""The running stack: locked down, ready to chat, seen by Prometheus; it drains, and survives its verifier."""

import asyncio
import base64
import json
import urllib.error
import urllib.request
from datetime import UTC, datetime
from typing import Any

import pytest
from container_stack import UID, Stack, wait_for
from processes import HOST, Ask

CHAT = Ask("Tell me a tale about a fox who wanted to see the sea.", seed=7, max_tokens=160, is_chat=True)
LONG = Ask("Once upon a time there was a bear who", seed=11, max_tokens=400)
SLOW_CPUS = 0.1
"""Of a verifier whose answer must last until it is disturbed."""
ALL_CPUS = 2
STOP_S = 60.0

BOTH = pytest.mark.parametrize("service", ["verifier", "edge"])


def fetch(url: str, user: str | None = None) -> Any:
    """JSON from a server on this machine."""
    request = urllib.request.Request(url)
    if user is not None:
        request.add_header("Authorization", "Basic " + base64.b64encode(user.encode()).decode())
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
        return json.load(answer)


@BOTH
def test_runs_without_privileges(stack: Stack, service: str) -> None:
    status = dict(line.split(":\t", 1) for line in stack.execute(service, "cat", "/proc/1/status").splitlines())
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(UID)}
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"


@BOTH
def test_writes_nowhere_but_in_volumes(stack: Stack, service: str) -> None:
    code = """
import errno, os
for folder in ("/", "/opt/specedge", "/usr", "/etc"):
    try:
        open(os.path.join(folder, "new"), "w")
    except OSError as error:
        print(errno.errorcode[error.errno])
for folder in ("/tmp", "/cache", "/models"):
    open(os.path.join(folder, "new"), "w").close()
    os.remove(os.path.join(folder, "new"))
"""
    assert stack.execute(service, "/opt/specedge/bin/python", "-c", code).split() == ["EROFS"] * 4


@BOTH
def test_computes_natively_without_a_compiler(stack: Stack, service: str) -> None:
    log = stack.logs(service)
    assert "built beforehand" in log and "engine lean" not in log


async def test_streams_a_chat(stack: Stack) -> None:
    async with stack.client() as client:
        text = await CHAT.streamed(client)
        assert len(text.split()) > 40
        assert await CHAT.whole(client, speculation={"enabled": False}) == text


def test_is_scraped(stack: Stack) -> None:
    def are_up() -> bool:
        result = fetch(f"http://{HOST}:{stack.ports['PROMETHEUS']}/api/v1/query?query=up")["data"]["result"]
        up = {series["metric"]["job"]: series["value"][1] for series in result}
        return up.get("specedge-verifier") == up.get("specedge-edge") == "1"

    wait_for("Prometheus scrapes verifier and edge", are_up)


def test_grafana_shows_dashboards(stack: Stack, has_stand_ins: bool) -> None:
    if has_stand_ins:
        pytest.skip("STAND_INS is set: Grafana's official image is not run")
    url = f"http://{HOST}:{stack.ports['GRAFANA']}/api"

    def is_up() -> bool:
        try:
            return bool(fetch(f"{url}/health")["database"] == "ok")
        except OSError:
            return False

    wait_for("Grafana answers", is_up)
    assert len(fetch(f"{url}/search?type=dash-db", "admin:admin")) >= 4
    (source,) = fetch(f"{url}/datasources", "admin:admin")
    assert source["type"] == "prometheus"


async def undisturbed(stack: Stack) -> str:
    async with stack.client() as client:
        return await LONG.streamed(client)


@BOTH
async def test_an_answer_is_finished_before_a_stop(stack: Stack, service: str) -> None:
    expected = await undisturbed(stack)
    stack.limit_cpus("verifier", SLOW_CPUS)
    try:
        async with stack.client() as client:
            pieces = LONG.pieces(client)
            early = await anext(pieces)
            stopping = asyncio.create_task(asyncio.to_thread(stack.stop, service))
            await asyncio.to_thread(wait_for, "draining", lambda: "draining" in stack.logs(service), STOP_S)
            stack.limit_cpus("verifier", ALL_CPUS)
            rest = [piece async for piece in pieces]
            finished_at = datetime.now(UTC)
            await stopping
    finally:
        stack.limit_cpus("verifier", ALL_CPUS)
    assert early + "".join(rest) == expected
    assert stack.state(service)["ExitCode"] == 0
    assert stack.logged_at(service, "draining") < finished_at, "the answer was over before the signal"
    stack.restart(service)
    stack.wait_healthy(service)


async def test_an_answer_survives_its_verifier(stack: Stack) -> None:
    expected = await undisturbed(stack)
    stack.limit_cpus("verifier", SLOW_CPUS)
    try:
        async with stack.client() as client:
            pieces = LONG.pieces(client)
            early = await anext(pieces)
            await asyncio.to_thread(stack.kill, "verifier")
            stack.limit_cpus("verifier", ALL_CPUS)
            await asyncio.to_thread(stack.restart, "verifier")
            rest = [piece async for piece in pieces]
    finally:
        stack.limit_cpus("verifier", ALL_CPUS)
    assert early + "".join(rest) == expected
    stack.wait_healthy("verifier")
