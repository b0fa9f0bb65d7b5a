"""Users who stream seeded answers all the time, and what they saw."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import openai
from processes import Ask, Edge

ANIMALS = ("fox", "owl", "hare", "crow", "mouse", "bear", "hen", "otter", "wolf", "toad", "lamb", "goose")
TEMPERATURES = (1.0, 0.7, 0.0)
PARALLEL = 4
"""Undisturbed answers that are made at a time."""


def make_asks(num: int, min_tokens: int, max_tokens: int) -> list[Ask]:
    """Different requests, chats and texts, of lengths between these."""
    step = (max_tokens - min_tokens) / max(num - 1, 1)
    return [
        Ask(
            f"The {ANIMALS[index % len(ANIMALS)]} went to the market and",
            seed=100 + index,
            max_tokens=round(min_tokens + index * step),
            temperature=TEMPERATURES[index % len(TEMPERATURES)],
            is_chat=index % 2 == 0,
        )
        for index in range(num)
    ]


@dataclass(slots=True)
class Answer:
    """What one request came to; times are Unix time in seconds.

    Attributes:
        ask: what was wanted.
        began_s, ended_s: of the request.
        id: as the edge calls it, once it has begun.
        tokens_s: when text came.
        text: all of it.
        failure: why it ended before its end, as the client told it; None if it did not.
        is_refused: the failure says by its status that it was nobody's fault, and when to come back.
    """

    ask: Ask
    began_s: float
    ended_s: float = 0.0
    id: str = ""
    tokens_s: list[float] = field(default_factory=list)
    text: str = ""
    failure: str | None = None
    is_refused: bool = False


async def stream(ask: Ask, client: Any) -> Answer:
    """Asks once, and keeps what comes."""
    answer = Answer(ask, time.time())
    finish_reason, pieces = None, []
    try:
        async with await ask.send(client, stream=True) as chunks:
            async for chunk in chunks:
                answer.id = chunk.id
                (choice,) = chunk.choices
                finish_reason = choice.finish_reason or finish_reason
                if piece := (choice.delta.content if ask.is_chat else choice.text):
                    answer.tokens_s.append(time.time())
                    pieces.append(piece)
        if finish_reason != "length":
            answer.failure = f"the stream ended with finish_reason {finish_reason}"
    except openai.APIStatusError as error:
        answer.failure = f"HTTP {error.status_code}: {error.message}"
        answer.is_refused = error.status_code == 503 and "retry-after" in error.response.headers
    except openai.APIConnectionError as error:
        answer.failure = f"{type(error).__name__}: {error.__cause__ or error}"
    except openai.APIError as error:  # an error event within the stream
        answer.failure = f"{error.type}: {error.message}"
        answer.is_refused = error.type == "service_unavailable" or "verifier" in error.message
    answer.text = "".join(pieces)
    answer.ended_s = time.time()
    return answer


async def undisturbed(edge: Edge, asks: Iterable[Ask]) -> dict[Ask, str]:
    """The texts of the answers when nothing happens."""
    room = asyncio.Semaphore(PARALLEL)

    async def one(ask: Ask, client: Any) -> tuple[Ask, str]:
        async with room:
            answer = await stream(ask, client)
        assert answer.failure is None, answer.failure
        return ask, answer.text

    async with edge.client() as client:
        return dict(await asyncio.gather(*(one(ask, client) for ask in asks)))


class Load:
    """Users at each edge, who ask again some moments after they have their answers.

    Args:
        edges: where they ask.
        asks: what they ask, at random.
        num_users: at each edge.
        pause_s: of each after an answer, on average.
        seed: of what they ask.

    Attributes:
        answers: those that have ended, in order of their ends.
    """

    def __init__(self, edges: Sequence[Edge], asks: Sequence[Ask], num_users: int, pause_s: float, seed: int) -> None:
        self.answers: list[Answer] = []
        self._edges = edges
        self._asks = asks
        self._num_users = num_users
        self._pause_s = pause_s
        self._seed = seed
        self._is_over = False
        self._users: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        """The users begin to ask."""
        self._is_over = False
        for edge in self._edges:
            for _ in range(self._num_users):
                self._seed += 1
                self._users.append(asyncio.create_task(self._use(edge, Random(self._seed))))

    async def end(self) -> None:
        """The users ask nothing new; waits until they have their last answers."""
        self._is_over = True
        users, self._users = self._users, []
        await asyncio.gather(*users)

    async def _use(self, edge: Edge, dice: Random) -> None:
        async with edge.client() as client:
            while not self._is_over:
                answer = await stream(dice.choice(self._asks), client)
                self.answers.append(answer)
                await asyncio.sleep(dice.uniform(0.0, 2 * self._pause_s))

    def leave(self) -> None:
        """The users go away at once, should they still be there."""
        for user in self._users:
            user.cancel()
