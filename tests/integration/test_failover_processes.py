"""Real processes: an edge of two verifiers, one of which is killed, stopped or frozen under the answers it makes."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes import Ask, Edge, Verifier, nothing_held, running

ASKS = [
    Ask(f"The {animal} went to the market and", seed=100 + number, max_tokens=900, is_chat=number % 2 == 0)
    for number, animal in enumerate(("fox", "owl", "hare", "crow", "mouse", "bear"))
]
MOVED = "specedge_edge_failovers_total"
SESSIONS = "specedge_verifier_sessions_running"


@dataclass(frozen=True)
class Site:
    first: Verifier
    second: Verifier
    edge: Edge
    undisturbed: list[str] = field(default_factory=list)

    async def answers(self, on_started: Callable[[], Awaitable[None]] | None = None) -> list[str]:
        """The texts; `on_started` is called when the first has begun."""
        has_begun = on_started is None

        async def one(ask: Ask, client: Any) -> str:
            nonlocal has_begun
            pieces: list[str] = []
            async for piece in ask.pieces(client):
                pieces.append(piece)
                if len(pieces) == 10 and not has_begun:
                    has_begun = True
                    await on_started()
            return "".join(pieces)

        async with self.edge.client() as client:
            return await asyncio.gather(*(one(ask, client) for ask in ASKS))

    async def busiest(self) -> Verifier:
        """The verifier that has most of the sessions now."""
        numbers = [await verifier.sample(SESSIONS) for verifier in (self.first, self.second)]
        assert any(numbers), "every answer has ended already"
        return self.first if numbers[0] >= numbers[1] else self.second

    async def states(self) -> list[str]:
        async with httpx.AsyncClient(trust_env=False) as client:
            return [found["state"] for found in (await client.get(f"{self.edge.url}/ready")).json()["verifiers"]]

    async def until_both_are_good(self) -> None:
        async with asyncio.timeout(60):
            while await self.states() != ["good", "good"]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second", "edge")]
    first, second = (Verifier(Path(folder), "--num-kv-blocks", "128") for folder in folders[:2])
    several = f"{first.address},{second.address}"
    edge = Edge(folders[2], "edge", first, "--num-draft-slots", "4096", "--verifier-address", several)
    with running(first, second, edge):
        yield Site(first, second, edge)
    assert "Traceback" not in edge.log(), edge.log()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
async def test_no_answer_notices_more_than_a_pause(site: Site, number: signal.Signals) -> None:
    await site.until_both_are_good()
    if not site.undisturbed:
        site.undisturbed.extend(await site.answers())
    num_moved = await site.edge.sample(MOVED)
    struck: list[Verifier] = []

    async def strike() -> None:
        struck.append(await site.busiest())
        struck[0].signal(number)

    try:
        async with asyncio.timeout(60):
            assert await site.answers(strike) == site.undisturbed
    finally:
        # A stopped process would not hear that it is to end.
        for verifier in struck:
            if number is signal.SIGSTOP:
                verifier.signal(signal.SIGCONT)
    # What a draining verifier ends within a second need not move.
    assert await site.edge.sample(MOVED) > num_moved or number is signal.SIGTERM, "an answer must have moved"
    if number is not signal.SIGSTOP:
        assert struck[0].exit_code() == (0 if number is signal.SIGTERM else -signal.SIGKILL)
        struck[0].start()
        await asyncio.to_thread(struck[0].wait_ready)
    await site.until_both_are_good()
    await nothing_held(site.first, site.second, site.edge)
