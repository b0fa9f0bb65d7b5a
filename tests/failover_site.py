"""An edge of two verifiers as real processes, and people who ask it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import Ask, Edge, Verifier

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

    @classmethod
    def at(cls, first: Path, second: Path, edge: Path) -> "Site":
        """A site that is not started, with its logs in these folders; each verifier has room for all the answers."""
        verifiers = [Verifier(folder, "--num-kv-blocks", "512") for folder in (first, second)]
        several = ",".join(verifier.address for verifier in verifiers)
        asked = Edge(edge, "edge", verifiers[0], "--num-draft-slots", "4096", "--verifier-address", several)
        return cls(*verifiers, asked)

    async def make_undisturbed(self, num_asks: int = len(ASKS)) -> list[str]:
        """The texts that come when nothing happens, each made once."""
        if missing := ASKS[len(self.undisturbed) : num_asks]:
            self.undisturbed.extend(await self.edge.answers(missing))
        return self.undisturbed[:num_asks]

    @asynccontextmanager
    async def under_load(self, num_asks: int = len(ASKS)) -> AsyncIterator[None]:
        """So many are asked again and again while the block runs; each answer must be the undisturbed one."""
        undisturbed, is_over = await self.make_undisturbed(num_asks), False

        async def again_and_again(ask: Ask, text: str, client: Any) -> int:
            num_answers = 0
            while not is_over:
                assert await ask.streamed(client) == text
                num_answers += 1
            return num_answers

        async with self.edge.client() as client, asyncio.TaskGroup() as load:
            asking = [
                load.create_task(again_and_again(ask, text, client))
                for ask, text in zip(ASKS[:num_asks], undisturbed, strict=True)
            ]
            yield
            is_over = True
        assert all(task.result() for task in asking)

    async def busiest(self) -> Verifier:
        """The verifier that has most of the sessions now."""
        numbers = [await verifier.sample(SESSIONS) for verifier in (self.first, self.second)]
        assert any(numbers), "every answer has ended already"
        return self.first if numbers[0] >= numbers[1] else self.second

    async def until_both_are_good(self) -> None:
        async with asyncio.timeout(60):
            while await self.edge.verifier_states() != ["good", "good"]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def until_it_has_sessions(self, verifier: Verifier) -> None:
        async with asyncio.timeout(60):
            while not await verifier.sample(SESSIONS):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
