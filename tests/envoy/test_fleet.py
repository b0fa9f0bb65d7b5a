"""Sessions through Envoy are spread and kept, resumed when a verifier dies, moved when one drains, and never lost."""

import asyncio
import re
import signal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from envoy_support import DEADLINE_S, LONG, SHORT, Fleet, Undisturbed, until

MANIFEST = Path(__file__).parents[2] / "deploy" / "k8s" / "components" / "envoy" / "envoy.yaml"
RECONNECTS = "specedge_edge_reconnects_total"


async def begin(fleet: Fleet, client: Any) -> tuple[list[asyncio.Task[str]], list[int]]:
    """Long answers under way, and how many of them each verifier has."""

    async def are_healthy() -> bool:
        return await fleet.envoy.stat("cluster.verifiers.membership_healthy") == 2

    await until("Envoy knows that both verifiers are healthy", are_healthy)
    answers = [asyncio.create_task(ask.streamed(client)) for ask in LONG]

    async def are_spread() -> bool:
        assert not any(answer.done() for answer in answers), await asyncio.gather(*answers)
        running = await fleet.num_running()
        return sum(running) == len(LONG) and min(running) > 0

    await until("both verifiers have sessions", are_spread)
    return answers, await fleet.num_running()


async def logged(fleet: Fleet, num_sessions: int) -> list[dict[str, Any]]:
    async def are_logged() -> bool:
        return len(fleet.sessions()) >= num_sessions

    await until(f"{num_sessions} sessions are in the access log", are_logged)
    return fleet.sessions()


async def test_sessions_are_spread_stay_where_they_are_and_are_logged_without_content(
    fleet: Fleet, undisturbed: Undisturbed
) -> None:
    async with fleet.edge.client() as client:
        answers, _ = await begin(fleet, client)
        assert await asyncio.gather(*answers) == undisturbed.long
    assert await fleet.edge.sample(RECONNECTS) == 0
    sessions = await logged(fleet, len(LONG))
    assert [line["attempts"] for line in sessions] == [1] * len(LONG)
    assert {line["verifier"] for line in sessions} == {verifier.address for verifier in fleet.verifiers}
    for line in sessions:
        assert line.keys() == {
            *("time", "method", "edge", "verifier", "attempts", "grpc_status", "flags", "duration_ms"),
            *("bytes_up", "bytes_down"),
        }
        assert line["bytes_up"] > 0 and line["bytes_down"] > 0
    async with httpx.AsyncClient(base_url=fleet.envoy.status_url, trust_env=False) as client:
        assert (await client.get("/ready")).text.strip() == "LIVE"
        assert "envoy_cluster_membership_healthy" in (await client.get("/metrics")).text
        assert (await client.get("/quitquitquit")).status_code == 404
    assert not [text for text in (*undisturbed.long, LONG[0].prompt) if text in fleet.envoy.log()]


async def test_answers_of_a_killed_verifier_go_on_at_the_other_and_nothing_is_sent_twice(
    fleet: Fleet, undisturbed: Undisturbed
) -> None:
    one, two = fleet.verifiers
    async with fleet.edge.client() as client:
        answers, (num_lost, _) = await begin(fleet, client)
        one.signal(signal.SIGKILL)
        assert await asyncio.gather(*answers) == undisturbed.long
        assert await fleet.edge.sample(RECONNECTS) >= num_lost
        sessions = await logged(fleet, len(LONG) + num_lost)
        lost = [line for line in sessions if line["verifier"] == one.address and line["bytes_down"]]
        # What had begun is not repeated by Envoy: the edge opened those again, and they went to the other verifier.
        assert [line["attempts"] for line in lost] == [1] * num_lost
        assert [line["verifier"] for line in sessions if line["bytes_down"] and line not in lost] == [two.address] * 4
        assert await asyncio.gather(*(SHORT.whole(client) for _ in range(8))) == [undisturbed.short] * 8


async def test_a_verifier_drains_while_its_sessions_finish_and_comes_back(
    fleet: Fleet, undisturbed: Undisturbed
) -> None:
    one, _ = fleet.verifiers
    async with fleet.edge.client() as client:
        answers, _ = await begin(fleet, client)
        one.signal(signal.SIGTERM)
        assert [await SHORT.whole(client) for _ in range(6)] == [undisturbed.short] * 6
        assert await asyncio.gather(*answers) == undisturbed.long
        assert await asyncio.to_thread(one.exit_code) == 0
        assert "outlived the drain" not in one.log()
        assert await SHORT.whole(client) == undisturbed.short
        assert await fleet.edge.sample(RECONNECTS) == 0, "no session was cut, and none was refused"

        one.start()
        await asyncio.to_thread(one.wait_ready)
        answers, _ = await begin(fleet, client)
        assert await asyncio.gather(*answers) == undisturbed.long


@pytest.mark.parametrize("fleet", [{"has_health_checks": False}], indirect=True, ids=["unchecked"])
async def test_a_session_that_was_refused_is_tried_at_the_other_verifier(
    fleet: Fleet, undisturbed: Undisturbed
) -> None:
    one, two = fleet.verifiers

    async def drains() -> bool:
        return "draining" in one.log()

    async with fleet.edge.client() as client:
        answers, _ = await begin(fleet, client)
        one.signal(signal.SIGTERM)
        await until("it drains", drains)
        # Several at a time: some of them would go to the verifier that drains.
        short = await asyncio.gather(*(SHORT.whole(client) for _ in range(8)))
        assert short == [undisturbed.short] * 8
        assert await asyncio.gather(*answers) == undisturbed.long
        assert await asyncio.to_thread(one.exit_code) == 0
    assert await fleet.edge.sample(RECONNECTS) == 0
    retried = [line for line in await logged(fleet, len(LONG) + 8) if line["attempts"] > 1]
    assert retried and {line["verifier"] for line in retried} == {two.address}


@pytest.mark.parametrize("fleet", [{"ping_s": 1.0}], indirect=True, ids=["pinged"])
async def test_answers_of_a_verifier_that_hangs_go_on_at_the_other(fleet: Fleet, undisturbed: Undisturbed) -> None:
    one, _ = fleet.verifiers
    async with fleet.edge.client() as client:
        answers, (num_lost, _) = await begin(fleet, client)
        one.signal(signal.SIGSTOP)
        try:
            assert await asyncio.gather(*answers) == undisturbed.long
        finally:
            one.signal(signal.SIGCONT)
    assert await fleet.edge.sample(RECONNECTS) >= num_lost


async def drain_as_kubernetes_does(fleet: Fleet) -> None:
    """Runs the preStop hook of the manifest, without its wait."""
    deployment = next(yaml.safe_load_all(MANIFEST.read_text()))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    *shell, command = container["lifecycle"]["preStop"]["exec"]["command"]
    port = str(urlsplit(fleet.envoy.admin_url).port)
    hook = await asyncio.create_subprocess_exec(*shell, re.sub(r"sleep \d+", "true", command).replace("9901", port))
    assert await asyncio.wait_for(hook.wait(), DEADLINE_S) == 0


async def test_envoy_drains_without_cutting_a_session(fleet: Fleet, undisturbed: Undisturbed) -> None:
    async with fleet.edge.client() as client:
        answers, _ = await begin(fleet, client)
        await drain_as_kubernetes_does(fleet)
        await until("edges are told to go", lambda: fleet.envoy.stat("http.sessions.downstream_cx_drain_close"))
        assert await asyncio.gather(*answers) == undisturbed.long
    assert await fleet.edge.sample(RECONNECTS) == 0
