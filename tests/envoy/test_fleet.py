"""Sessions through Envoy: spread and kept, resumed when a verifier dies, moved when one drains, and none of them lost."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from envoy_support import Fleet
from processes import Ask

LONG = [Ask("Once upon a time there was a bear who", seed=seed, max_tokens=500) for seed in range(4)]
SHORT = Ask("A fox wanted to see the sea.", seed=5, max_tokens=24)
DEADLINE_S = 60.0


async def until(what: str, is_true: Callable[[], Awaitable[bool]]) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not await is_true():
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"not within {DEADLINE_S:g} s: {what}")


async def plain(client: Any, asks: list[Ask]) -> list[str]:
    """What plain decoding answers, undisturbed."""
    return await asyncio.gather(*(ask.whole(client, speculation={"enabled": False}) for ask in asks))


async def wait_spread(fleet: Fleet) -> tuple[int, int]:
    """Returns how many sessions each verifier has, once all of them run."""

    async def is_spread() -> bool:
        running = await fleet.num_running()
        return sum(running) == len(LONG) and min(running) > 0

    await until("both verifiers have sessions", is_spread)
    one, two = await fleet.num_running()
    return one, two


async def wait_logged(fleet: Fleet, num_sessions: int) -> list[dict[str, Any]]:
    async def are_logged() -> bool:
        return len(fleet.sessions()) >= num_sessions

    await until(f"{num_sessions} sessions are in the access log", are_logged)
    return fleet.sessions()


async def test_sessions_are_spread_and_stay_where_they_are(fleet: Fleet) -> None:
    async with fleet.edge.client() as client:
        wanted = await plain(client, LONG)
        answers = [asyncio.create_task(ask.streamed(client)) for ask in LONG]
        await wait_spread(fleet)
        assert await asyncio.gather(*answers) == wanted
    assert await fleet.edge.sample("specedge_edge_reconnects_total") == 0
    sessions = await wait_logged(fleet, 2 * len(LONG))
    assert [line["attempts"] for line in sessions] == [1] * 2 * len(LONG)
    assert {line["verifier"] for line in sessions} == {verifier.address for verifier in fleet.verifiers}


async def test_the_access_log_tells_no_content(fleet: Fleet) -> None:
    ask = Ask("The password is swordfish, said the heron.", seed=3, max_tokens=16)
    async with fleet.edge.client() as client:
        text = await ask.whole(client)
    (line,) = await wait_logged(fleet, 1)
    assert line.keys() == {
        *("time", "method", "edge", "verifier", "attempts", "grpc_status", "flags", "duration_ms"),
        *("bytes_up", "bytes_down"),
    }
    assert line["bytes_up"] > 0 and line["bytes_down"] > 0
    assert "swordfish" not in fleet.envoy.log() and text.strip() not in fleet.envoy.log()


async def test_answers_of_a_killed_verifier_go_on_at_the_other_and_nothing_is_sent_twice(fleet: Fleet) -> None:
    one, two = fleet.verifiers
    async with fleet.edge.client() as client:
        wanted = await plain(client, LONG)
        opened = [line["verifier"] for line in await wait_logged(fleet, len(LONG))]
        num_retries = await fleet.envoy.stat("cluster.verifiers.upstream_rq_retry")
        answers = [asyncio.create_task(ask.streamed(client)) for ask in LONG]
        num_lost, _ = await wait_spread(fleet)
        one.signal(signal.SIGKILL)
        assert await asyncio.gather(*answers) == wanted
        assert await fleet.edge.sample("specedge_edge_reconnects_total") >= num_lost
        sessions = (await wait_logged(fleet, len(opened) + len(LONG) + num_lost))[len(opened) :]
        begun = [line for line in sessions if line["verifier"] == one.address and line["bytes_down"]]
        # Envoy did not repeat what had begun; those that the edge opened again went to the other, if need be by a retry.
        assert [line["attempts"] for line in begun] == [1] * num_lost
        assert [line["verifier"] for line in sessions if line not in begun] == [two.address] * len(LONG)
        assert num_retries == 0
        # Whoever comes now is served as if nothing had happened.
        assert len(await asyncio.gather(*(SHORT.whole(client) for _ in range(8)))) == 8


async def test_a_verifier_drains_while_its_sessions_finish_and_new_ones_go_to_the_other(fleet: Fleet) -> None:
    one, two = fleet.verifiers
    async with fleet.edge.client() as client:
        wanted = await plain(client, [*LONG, SHORT])
        answers = [asyncio.create_task(ask.streamed(client)) for ask in LONG]
        await wait_spread(fleet)
        one.signal(signal.SIGTERM)
        short = [await SHORT.whole(client) for _ in range(10)]
        assert one.is_running, "it drains for as long as it has sessions"
        assert [*await asyncio.gather(*answers), *short] == [*wanted[:-1], *[wanted[-1]] * 10]
        assert await asyncio.to_thread(one.exit_code) == 0
        assert [await SHORT.whole(client) for _ in range(4)] == [wanted[-1]] * 4
    assert "outlived the drain" not in one.log()
    assert await fleet.edge.sample("specedge_edge_reconnects_total") == 0, "no session was cut, none was refused"


@pytest.mark.parametrize("fleet", [{"has_health_checks": False}], indirect=True, ids=["unseen"])
async def test_a_session_that_was_refused_is_tried_at_the_other_verifier(fleet: Fleet) -> None:
    one, two = fleet.verifiers
    async with fleet.edge.client() as client:
        wanted = await plain(client, [*LONG, SHORT])
        answers = [asyncio.create_task(ask.streamed(client)) for ask in LONG]
        await wait_spread(fleet)
        one.signal(signal.SIGTERM)
        await until("it drains", lambda: asyncio.to_thread(lambda: "draining" in one.log()))
        # Several at a time: some would go to the verifier that drains.
        for _ in range(3):
            short = await asyncio.gather(*(SHORT.whole(client) for _ in range(4)))
            assert short == [wanted[-1]] * 4
        assert await asyncio.gather(*answers) == wanted[:-1]
        assert await asyncio.to_thread(one.exit_code) == 0
    assert await fleet.edge.sample("specedge_edge_reconnects_total") == 0
    retried = [line for line in await wait_logged(fleet, 21) if line["attempts"] > 1]
    assert retried and {line["verifier"] for line in retried} == {two.address}


async def test_a_verifier_that_comes_back_gets_sessions_again(fleet: Fleet) -> None:
    one, _ = fleet.verifiers
    one.signal(signal.SIGTERM)
    assert await asyncio.to_thread(one.exit_code) == 0
    one.start()
    await asyncio.to_thread(one.wait_ready)

    async def are_healthy() -> bool:
        return await fleet.envoy.stat("cluster.verifiers.membership_healthy") == 2

    await until("Envoy sees both verifiers", are_healthy)
    async with fleet.edge.client() as client:
        answers = [asyncio.create_task(ask.streamed(client)) for ask in LONG]
        await wait_spread(fleet)
        await asyncio.gather(*answers)


async def test_envoy_drains_without_cutting_a_session(fleet: Fleet) -> None:
    async with fleet.edge.client() as client:
        wanted = await plain(client, LONG)
        answers = [asyncio.create_task(ask.streamed(client)) for ask in LONG]
        await wait_spread(fleet)
        await fleet.envoy.post("/drain_listeners?graceful&skip_exit")
        assert await asyncio.gather(*answers) == wanted
    assert await fleet.edge.sample("specedge_edge_reconnects_total") == 0
