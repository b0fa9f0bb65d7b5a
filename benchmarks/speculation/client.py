"""A user of the edge's HTTP API who looks at the clock."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    prompt: str
    temperature: float
    seed: int
    max_tokens: int
    speculate: bool = True

    def body(self) -> dict[str, object]:
        return {
            "model": None,
            "messages": [{"role": "user", "content": self.prompt}],
            "temperature": self.temperature,
            "top_p": 1.0,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "ignore_eos": True,
            "speculate": self.speculate,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as its user saw it.

    Attributes:
        text: all of it.
        num_tokens: its tokens.
        first_s: from the request to the first token.
        inter_token_s: mean time between tokens after the first burst.
    """

    text: str
    num_tokens: int
    first_s: float
    inter_token_s: float


async def ask(client: httpx.AsyncClient, url: str, request: Ask) -> Answer:
    """Sends one request and reads its stream to the end.

    Raises:
        httpx.HTTPError: it failed.
    """
    started_s = time.perf_counter()
    text: list[str] = []
    moments: list[tuple[float, int]] = []  # (when, tokens so far)
    async with client.stream("POST", f"{url}/v1/chat/completions", json=request.body()) as response:
        if response.is_error:
            await response.aread()
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            num_tokens = chunk["usage"]["completion_tokens"]
            if num_tokens > (moments[-1][1] if moments else 0):
                moments.append((time.perf_counter(), num_tokens))
            text += [choice["delta"].get("content") or "" for choice in chunk["choices"]]
    (first_s, num_first), (last_s, num_tokens) = moments[0], moments[-1]
    inter_token_s = (last_s - first_s) / max(1, num_tokens - num_first)
    return Answer("".join(text), num_tokens, first_s - started_s, inter_token_s)


async def ask_all(client: httpx.AsyncClient, url: str, requests: Sequence[Ask]) -> tuple[list[Answer], float]:
    """Sends requests at once, and also returns the seconds until the last answer was complete."""
    started_s = time.perf_counter()
    answers = await asyncio.gather(*(ask(client, url, request) for request in requests))
    return list(answers), time.perf_counter() - started_s
