"""Degraded mode with real processes: the draft model answers alone while its verifier is away, and never in between."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
from journal_support import Asking, ask, pieces
from processes import Edge, Verifier, running

ASKING = Asking("/v1/chat/completions", {"seed": 5}, max_tokens=60)
STREAMED = Asking("/v1/chat/completions", {"seed": 5, "stream": True}, max_tokens=60)
LONG = Asking("/v1/chat/completions", {"seed": 7, "stream": True}, max_tokens=250)
DEGRADED = {"x-specedge-degraded": "draft-only"}


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verifier]:
    """Not started; paced, so that answers take long without computing much."""
    folder = tmp_path_factory.mktemp("verifier")
    verifier = Verifier(folder, "--num-kv-blocks", "200", "--pad-frames", "256", "--frame-interval-ms", "10")
    yield verifier
    verifier.destroy()


@pytest.fixture(scope="module")
def edge(verifier: Verifier, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    flags = ["--draft-only", "when_unreachable", "--num-draft-slots", "4096", "--verifier-deadline-s", "120"]
    edge = Edge(tmp_path_factory.mktemp("edge"), "edge", verifier, *flags)
    with running(edge):
        yield edge


@asynccontextmanager
async def client_of(edge: Edge) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=edge.url, trust_env=False, timeout=150) as client:
        yield client


async def is_degraded(client: httpx.AsyncClient) -> bool:
    return (await client.get("/ready")).json().get("degraded") == "draft-only"


async def becomes(client: httpx.AsyncClient, wanted: bool) -> None:
    async with asyncio.timeout(60):
        while await is_degraded(client) is not wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_without_a_verifier_the_draft_model_answers_and_says_so(edge: Edge) -> None:
    async with client_of(edge) as client:
        assert await is_degraded(client)
        response = await client.post(ASKING.path, json=ASKING.json)
        assert response.status_code == 200, response.text
        assert response.headers.items() >= DEGRADED.items()
        answer = response.json()
        assert answer["system_fingerprint"].endswith("-draft-only")
        assert answer["usage"]["completion_tokens"] == 60 and "metrics" not in answer
        whole = answer["choices"][0]["message"]["content"]
        together = await asyncio.gather(*(ask(client, asking) for asking in (ASKING, STREAMED, STREAMED)))
        assert {told.texts for told in together} == {(whole,)}, "the same seed, the same text, in any company"
        for field in ({"logprobs": True}, {"response_format": {"type": "json_object"}}):
            refused = await client.post(ASKING.path, json={**ASKING.json, **field})
            assert refused.status_code == 503 and "retry-after" in refused.headers
            assert "draft-only" in refused.json()["error"]["message"]
    assert await edge.sample("specedge_edge_draft_only") == 1
    assert await edge.sample("specedge_edge_draft_only_answers_total") == 4
    assert await edge.num_held() == 0


@pytest.mark.slow
async def test_an_answer_stays_with_the_model_that_began_it(edge: Edge, verifier: Verifier) -> None:
    verifier.start()
    await asyncio.to_thread(verifier.wait_ready)
    async with client_of(edge) as client:
        await becomes(client, False)
        undisturbed = await ask(client, LONG)
        seen = ""
        async with client.stream("POST", LONG.path, json=LONG.json) as response:
            assert "x-specedge-degraded" not in response.headers
            async for _, text, _ in pieces(response):
                if not seen and text:
                    verifier.signal(signal.SIGKILL)
                    verifier.exit_code()
                    await becomes(client, True)
                    between = await client.post(ASKING.path, json=ASKING.json)
                    assert between.headers.items() >= DEGRADED.items()
                    verifier.start()
                seen += text
        assert (seen,) == undisturbed.texts, "the target's answer has waited for the target"
        assert await edge.sample("specedge_edge_reconnects_total") >= 1
        await becomes(client, False)
        after = await client.post(ASKING.path, json=ASKING.json)
        assert "x-specedge-degraded" not in after.headers
        assert after.json()["choices"] != between.json()["choices"]
