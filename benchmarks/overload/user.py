"""A user over a bare socket: a client library costs more than the service takes to refuse a request."""

import asyncio
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from specedge_bench.prompts.loaders import load_prompts

NO_ANSWER = 0
"""In place of a status: the connection broke, or nothing came in time."""

MAX_CHARACTERS = 300
"""Of each text that goes into a prompt: some together must leave room for an answer."""


@dataclass(frozen=True, slots=True)
class Question:
    """What every request of a run has in common.

    Attributes:
        num_prompts: own prompts in a row, which are one prompt here.
        max_tokens: of an answer, all of which come.
        timeout_s: after which a request has failed.
    """

    num_prompts: int = 3
    max_tokens: int = 96
    timeout_s: float = 90.0


@dataclass(slots=True)
class Outcome:
    """What became of a request; times by `time.perf_counter`.

    Attributes:
        status: of the answer, or NO_ANSWER.
        retry_after_s: as the header has it; None without one.
        error: what is wrong with an answer of status 200.
        bursts: when tokens arrived, and how many together.
    """

    sent_s: float
    status: int = NO_ANSWER
    retry_after_s: float | None = None
    error: str = ""
    bursts: list[tuple[float, int]] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(count for _, count in self.bursts)

    @property
    def ttft_s(self) -> float:
        return self.bursts[0][0] - self.sent_s


class Users:
    """Asks an edge, each request with a prompt that no cache knows.

    Args:
        url: of the edge's API.
        question: what they ask.
        seed: of what is drawn.
        headers: of every request, beside those that HTTP needs.
    """

    def __init__(self, url: str, question: Question, seed: int = 0, headers: Mapping[str, str] | None = None) -> None:
        place = urlsplit(url)
        assert place.hostname is not None and place.port is not None
        self._host, self._port = place.hostname, place.port
        self._question = question
        self._dice = random.Random(seed)
        texts = [prompt.text or prompt.messages[-1][1] for prompt in load_prompts()]
        self._texts = [text for text in texts if len(text) <= MAX_CHARACTERS]
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        self._num_asked = 0

    async def ask(self, **fields: Any) -> Outcome:
        """Sends a request and reads its answer to the end."""
        request = self._request(fields)
        outcome = Outcome(time.perf_counter())
        try:
            async with asyncio.timeout(self._question.timeout_s):
                await self._exchange(request, outcome)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            outcome.status, outcome.error = NO_ANSWER, f"{type(error).__name__}: {error}"
        return outcome

    def _request(self, fields: Mapping[str, Any]) -> bytes:
        self._num_asked += 1
        texts = self._dice.choices(self._texts, k=self._question.num_prompts)
        body = {
            "prompt": " ".join((f"({self._num_asked})", *texts)),
            "seed": self._num_asked,
            "max_tokens": self._question.max_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            **fields,
        }
        content = json.dumps(body).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: {self._host}:{self._port}\r\ncontent-type: application/json\r\n"
            f"connection: close\r\n{self._headers}content-length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content

    async def _exchange(self, request: bytes, outcome: Outcome) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            outcome.status = int(head[0].split()[1])
            for line in head[1:]:
                name, _, value = line.partition(":")
                if name.lower() == "retry-after":
                    outcome.retry_after_s = float(value)
            if outcome.status == 200:
                await _read_stream(reader, outcome)
        finally:
            writer.close()

        if outcome.status == 200 and outcome.num_tokens < self._question.max_tokens and not outcome.error:
            outcome.error = f"{outcome.num_tokens} of {self._question.max_tokens} tokens came"


async def _read_stream(reader: asyncio.StreamReader, outcome: Outcome) -> None:
    num_tokens = 0
    async for line in reader:
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[len(b"data: ") :])
        if "error" in chunk:
            outcome.error = str(chunk["error"])
            return
        if (count := chunk["usage"]["completion_tokens"]) > num_tokens:
            outcome.bursts.append((time.perf_counter(), count - num_tokens))
            num_tokens = count
