"""The HTTP API with API keys, and clients that have one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
from http_support import FakeService, RunningApi, ids, serving

from edge_agent.http.api_keys import spell_entry

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
USER: list[Any] = [{"role": "user", "content": "hi"}]
BODY: dict[str, Any] = {"model": "demo", "messages": USER}
PAGE = "https://chat.example.org"
ALICE, BOB = "sk-specedge-alice", "sk-specedge-bob"
STORY = "Once upon a time there was a rabbit."
NUM_STORY_TOKENS = len(ids(STORY)) + 1


def key_file_in(folder: Path) -> Path:
    """A file with the keys of Alice and Bob."""
    path = folder / "keys.yaml"
    put(path, spell_entry("alice", ALICE) + spell_entry("bob", BOB))
    return path


def put(path: Path, text: str) -> None:
    path.write_text(text)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@asynccontextmanager
async def guarded(service: FakeService, keys_file: Path, **settings: Any) -> AsyncIterator[RunningApi]:
    """The API with keys, looking at their file before every request."""
    async with serving(service, api_keys_file=keys_file, api_keys_check_s=0, **settings) as api:
        yield api


@asynccontextmanager
async def clients_of(
    api: RunningApi, key: str
) -> AsyncIterator[tuple[openai.AsyncOpenAI, anthropic.AsyncAnthropic, httpx.AsyncClient]]:
    async with (
        openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key=key, max_retries=0) as open_ai,
        anthropic.AsyncAnthropic(base_url=api.url, api_key=key, max_retries=0) as claude,
        httpx.AsyncClient(base_url=api.url, headers=bearer(key)) as plain,
    ):
        yield open_ai, claude, plain


@asynccontextmanager
async def connection(api: RunningApi) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*api.address)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
