"""Requests by name against a running edge, in every endpoint's form, read as text."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

SECRET = bytes(range(32))


def write_key(folder: Path, secret: bytes = SECRET) -> Path:
    path = folder / "journal.key"
    path.write_bytes(base64.b64encode(secret) + b"\n")
    return path


@dataclass(frozen=True, slots=True)
class Asking:
    """One way of asking for an answer of `max_tokens` tokens."""

    path: str
    body: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int = 200

    @property
    def json(self) -> dict[str, Any]:
        common = {"model": "specedge-demo", "temperature": 1.0, "ignore_eos": True}
        prompt = "Write a long story about a lighthouse and its keeper."
        message = [{"role": "user", "content": prompt}]
        own: dict[str, Any] = {"messages": message, "max_tokens": self.max_tokens}
        if self.path == "/v1/completions":
            own = {"prompt": prompt, "max_tokens": self.max_tokens}
        elif self.path == "/v1/responses":
            own = {"input": prompt, "max_output_tokens": self.max_tokens}
        return {**common, **own, **self.body}


@dataclass(frozen=True, slots=True)
class Told:
    """What an answer said: a text for each choice."""

    texts: tuple[str, ...]
    is_replayed: bool
    answer_id: str
    tool_calls: Any = None


async def ask(client: httpx.AsyncClient, asking: Asking, **headers: str) -> Told:
    """The whole answer, streamed or not."""
    if asking.json.get("stream"):
        texts: dict[int, str] = {0: ""}
        answer_id = ""
        async with client.stream("POST", asking.path, json=asking.json, headers=headers) as response:
            assert response.status_code == 200, await response.aread()
            async for index, text, found_id in pieces(response):
                texts[index] = texts.get(index, "") + text
                answer_id = answer_id or found_id
            is_replayed = response.headers.get("idempotent-replayed") == "true"
        return Told(tuple(texts[index] for index in sorted(texts)), is_replayed, answer_id)
    response = await client.post(asking.path, json=asking.json, headers=headers)
    assert response.status_code == 200, response.text
    answer = response.json()
    is_replayed = response.headers.get("idempotent-replayed") == "true"
    calls = [choice.get("message", {}).get("tool_calls") for choice in answer.get("choices", ())]
    return Told(tuple(_texts(answer)), is_replayed, answer["id"], calls)


async def begin(client: httpx.AsyncClient, asking: Asking, has_begun: asyncio.Event, **headers: str) -> str:
    """What was read of a stream until it broke; of the first choice."""
    seen = ""
    try:
        async with client.stream("POST", asking.path, json=asking.json, headers=headers) as response:
            assert response.status_code == 200, await response.aread()
            async for index, text, _ in pieces(response):
                seen += text if index == 0 else ""
                if seen:
                    has_begun.set()
    except httpx.TransportError:
        return seen
    raise AssertionError("the stream was to break, and ended")


async def pieces(response: httpx.Response) -> AsyncIterator[tuple[int, str, str]]:
    """Choice, text and the answer's id of each event with text."""
    async for line in response.aiter_lines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        event = json.loads(line.removeprefix("data: "))
        assert "error" not in event or event["error"] is None, event
        for choice in event.get("choices", ()):
            text = choice["delta"].get("content") or "" if "delta" in choice else choice["text"]
            yield choice["index"], text, event["id"]
        if event.get("type") == "response.output_text.delta":
            yield 0, event["delta"], ""
        if event.get("type") == "content_block_delta":
            yield 0, event["delta"].get("text", ""), ""


def _texts(answer: Mapping[str, Any]) -> list[str]:
    if "choices" in answer:
        return [
            choice["text"] if "text" in choice else choice["message"]["content"] or "" for choice in answer["choices"]
        ]
    blocks = answer["content"] if "content" in answer else answer["output"][-1]["content"]
    return ["".join(block["text"] for block in blocks)]
