"""Real processes: an edge of two verifiers, which are killed, frozen, and drained under the answers they make."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes import EXIT_TIMEOUT_S, Ask, Edge, Verifier, nothing_held, running

from specedge_cli.supervisor import specedge_command

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

    async def make_undisturbed(self) -> list[str]:
        """The texts that come when nothing happens, made once."""
        if not self.undisturbed:
            self.undisturbed.extend(await self.answers())
        return self.undisturbed

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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_no_answer_notices_more_than_a_pause(site: Site, number: signal.Signals) -> None:
    await site.until_both_are_good()
    undisturbed = await site.make_undisturbed()
    num_moved = await site.edge.sample(MOVED)
    struck: list[Verifier] = []

    async def strike() -> None:
        struck.append(await site.busiest())
        struck[0].signal(number)

    try:
        async with asyncio.timeout(60):
            assert await site.answers(strike) == undisturbed
    finally:
        # A stopped process would not hear that it is to end.
        for verifier in struck:
            if number is signal.SIGSTOP:
                verifier.signal(signal.SIGCONT)
    assert await site.edge.sample(MOVED) > num_moved, "an answer must have moved"
    if number is signal.SIGKILL:
        assert struck[0].exit_code() == -signal.SIGKILL
        struck[0].start()
        await asyncio.to_thread(struck[0].wait_ready)
    await site.until_both_are_good()
    await nothing_held(site.first, site.second, site.edge)


async def drained(verifier: Verifier) -> str:
    """What `specedge verifier drain` prints."""
    command = specedge_command(["verifier", "drain", "--port", verifier.address.rpartition(":")[2]])
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(EXIT_TIMEOUT_S):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest.mark.timeout(300)
async def test_verifiers_are_restarted_one_after_the_other_and_no_answer_fails(site: Site) -> None:
    await site.until_both_are_good()
    undisturbed = await site.make_undisturbed()
    num_moved = await site.edge.sample(MOVED)
    is_over = False

    async def asked_again_and_again(ask: Ask, text: str, client: Any) -> int:
        num_answers = 0
        while not is_over:
            assert await ask.streamed(client) == text
            num_answers += 1
        return num_answers

    async with asyncio.timeout(180), site.edge.client() as client, asyncio.TaskGroup() as load:
        asking = [
            load.create_task(asked_again_and_again(ask, text, client))
            for ask, text in zip(ASKS, undisturbed, strict=True)
        ]
        for verifier in (site.first, site.second):
            await site.until_both_are_good()
            while not await verifier.sample(SESSIONS):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert "has ended" in await drained(verifier)
            assert verifier.exit_code() == 0
            verifier.start()
            await asyncio.to_thread(verifier.wait_ready)
        await site.until_both_are_good()
        is_over = True
    assert all(task.result() for task in asking)
    assert await site.edge.sample(MOVED) > num_moved, "answers must have moved"
    await nothing_held(site.first, site.second, site.edge)
