"""A user of the edge's HTTP API who looks at the clock."""

import asyncio
import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any

import httpx

from specedge_bench.prompts.dataset import Prompt

_MAX_ERROR_CHARS = 300
_TOGETHER_S = 0.0005  # chunks that one read brought are microseconds apart; no step of a model is as short as this


@dataclass(frozen=True, slots=True)
class AskSettings:
    """What all requests of a run have in common.

    Args:
        max_new_tokens: of an answer.
        temperature: 0 takes the most probable token.
        reasoning: the chat template's `enable_thinking`; None leaves the template its own default.
        ignore_eos: answers go on behind their end, to the full length.
        timeout_s: after these seconds a request has failed.
    """

    max_new_tokens: int
    temperature: float = 0.0
    reasoning: bool | None = None
    ignore_eos: bool = False
    timeout_s: float = 120.0

    def body(self, prompt: Prompt, seed: int, max_tokens: int | None = None) -> dict[str, object]:
        """The request."""
        body: dict[str, object] = {
            "model": None,
            **prompt.body,
            "temperature": self.temperature,
            "top_p": 1.0,
            "seed": seed,
            "max_tokens": max_tokens or self.max_new_tokens,
            "ignore_eos": self.ignore_eos,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        if prompt.kind == "chat" and self.reasoning is not None:
            body["chat_template_kwargs"] = {"enable_thinking": self.reasoning}
        return body


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request; times by `time.perf_counter`.

    Args:
        sent_s, finished_s: its beginning and its end.
        error: why it failed, "" where it did not.
        bursts: when tokens arrived, and how many together: in one chunk, or in chunks that were read at once.
        digest: SHA-256 of the text.
    """

    sent_s: float
    finished_s: float
    error: str = ""
    bursts: tuple[tuple[float, int], ...] = ()
    finish_reason: str = ""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    digest: str = ""


async def ask(
    client: httpx.AsyncClient, url: str, prompt: Prompt, seed: int, settings: AskSettings, max_tokens: int | None = None
) -> Answer:
    """Sends one request and reads its stream to the end; whatever goes wrong is in the answer.

    Args:
        client: to send with.
        url: of an edge agent.
        prompt, seed, settings: the request.
        max_tokens: instead of the settings'.
    """
    stream = _Stream()
    sent_s = time.perf_counter()
    error = ""
    try:
        async with asyncio.timeout(settings.timeout_s):
            await _read(client, url + prompt.path, settings.body(prompt, seed, max_tokens), stream)
    except TimeoutError:
        error = f"no complete answer within {settings.timeout_s:g} s"
    except (httpx.HTTPError, _Refused) as failure:
        error = f"{type(failure).__name__}: {failure}".removeprefix("_Refused: ")[:_MAX_ERROR_CHARS]
    except (ValueError, KeyError, TypeError) as failure:
        error = f"an answer that cannot be read: {failure!r}"[:_MAX_ERROR_CHARS]
    if not error and not stream.finish_reason:
        error = "the stream ended before its answer"
    return stream.answer(sent_s, error)


async def _read(client: httpx.AsyncClient, url: str, body: dict[str, object], stream: "_Stream") -> None:
    async with client.stream("POST", url, json=body) as response:
        if response.is_error:
            text = (await response.aread()).decode(errors="replace")
            raise _Refused(f"HTTP {response.status_code}: {text}")
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                stream.take(json.loads(line.removeprefix("data: ")), time.perf_counter())


class _Refused(Exception):
    """The service answered with an error."""


class _Stream:
    """Adds up the chunks of one answer."""

    def __init__(self) -> None:
        self.finish_reason = ""
        self._bursts: list[tuple[float, int]] = []
        self._num_tokens = 0
        self._usage: dict[str, Any] = {}
        self._text = hashlib.sha256()

    def take(self, chunk: dict[str, Any], now_s: float) -> None:
        """One chunk that was read at a moment."""
        if "error" in chunk:
            raise _Refused(f"broken off: {chunk['error'].get('message', chunk['error'])}")
        self._usage = chunk["usage"]
        num_tokens = self._usage["completion_tokens"]
        if num_tokens > self._num_tokens:
            self._add(now_s, num_tokens - self._num_tokens)
            self._num_tokens = num_tokens
        for choice in chunk["choices"]:
            text = choice["delta"].get("content") if "delta" in choice else choice["text"]
            self._text.update((text or "").encode())
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def _add(self, now_s: float, num_tokens: int) -> None:
        started_s, num_before = self._bursts[-1] if self._bursts else (-1.0, 0)
        if now_s - started_s < _TOGETHER_S:
            self._bursts[-1] = started_s, num_before + num_tokens
        else:
            self._bursts.append((now_s, num_tokens))

    def answer(self, sent_s: float, error: str) -> Answer:
        cached = (self._usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        return Answer(
            sent_s=sent_s,
            finished_s=time.perf_counter(),
            error=error,
            bursts=tuple(self._bursts),
            finish_reason=self.finish_reason,
            num_prompt_tokens=self._usage.get("prompt_tokens", 0),
            num_cached_tokens=cached or 0,
            digest=self._text.hexdigest() if self.finish_reason else "",
        )
