"""Answers to one long prompt begin when its first answer has begun; headers say what drafting did."""

import asyncio
from contextlib import suppress

import httpx
import pytest
from fakes import until
from http_support import FakeService, serving

from edge_agent.generation import Burst, BurstStats
from edge_agent.http.choice_text import Piece
from edge_agent.http.speculation import SpeculationSummary
from specedge import __version__
from specedge.errors import CapacityExceeded

LONG = [7] * 200


def body(**fields: object) -> dict[str, object]:
    return {"prompt": LONG, "n": 3, "seed": 1, "max_tokens": 20, **fields}


class Slow(FakeService):
    """Holds back the first tokens until the gate opens."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()


async def opened_before_the_first_tokens(**fields: object) -> tuple[int, int]:
    """Sessions opened before any token has come, and in all."""
    service = Slow()
    async with serving(service) as api, httpx.AsyncClient(base_url=api.url) as client:
        task = asyncio.create_task(client.post("/v1/completions", json=body(**fields)))
        await until(lambda: service.requests)
        await asyncio.sleep(0.05)
        num_before = len(service.requests)
        service.gate.set()
        assert (await task).status_code == 200
    return num_before, len(service.requests)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (1, 3)),
        ({"prompt": [LONG, LONG[1:]]}, (2, 6)),
        ({"prompt": [LONG, LONG], "n": 1}, (1, 2)),
        ({"prompt": [7] * 20}, (3, 3)),
    ],
)
async def test_only_the_first_answer_to_a_long_prompt_begins_at_once(
    fields: dict[str, object], expected: tuple[int, int]
) -> None:
    assert await opened_before_the_first_tokens(**fields) == expected


async def test_with_fewer_places_than_answers_nothing_waits_for_ever() -> None:
    async with (
        serving(FakeService(), max_parallel_choices=1) as api,
        httpx.AsyncClient(base_url=api.url, timeout=10) as client,
    ):
        answer = (await client.post("/v1/completions", json=body(prompt=[LONG, LONG[1:]]))).json()
    assert [choice["text"] for choice in answer["choices"]] == ["Once upon a time."] * 6


async def test_a_first_answer_that_fails_ends_the_request() -> None:
    service = FakeService()
    service.open_error = CapacityExceeded("full", retry_after_s=1.0)
    async with serving(service) as api, httpx.AsyncClient(base_url=api.url) as client:
        assert (await client.post("/v1/completions", json=body())).status_code == 503
    assert len(service.requests) == 1


async def test_a_client_that_leaves_ends_those_that_wait() -> None:
    service = Slow()
    async with serving(service) as api:
        with suppress(httpx.ReadTimeout):
            async with httpx.AsyncClient(base_url=api.url, timeout=0.2) as client:
                await client.post("/v1/completions", json=body())
        await until(lambda: service.num_open == 0)
        assert len(service.requests) == 1


class Cached(FakeService):
    """Each session finds more of its prompt in the cache."""

    async def _bursts(self, request):  # type: ignore[no-untyped-def]
        num_cached: int | None = 16 * len(self.requests)
        async for burst in super()._bursts(request):
            yield Burst(burst.token_ids, burst.finish_reason, 0, BurstStats(num_cached_tokens=num_cached))
            num_cached = None


async def test_cached_tokens_are_those_of_each_prompts_first_answer() -> None:
    async with serving(Cached()) as api, httpx.AsyncClient(base_url=api.url) as client:
        one = (await client.post("/v1/completions", json=body())).json()["usage"]
        two = (await client.post("/v1/completions", json=body(prompt=[LONG, LONG[1:]], n=1))).json()["usage"]
    assert one["prompt_tokens"] == 200
    assert one["prompt_tokens_details"] == {"cached_tokens": 16}
    assert two["prompt_tokens_details"]["cached_tokens"] in (64 + 80, 80 + 80), "of sessions 4 and 5"


async def test_headers_tell_the_version_and_what_drafting_did() -> None:
    async with serving(FakeService(burst_size=3)) as api, httpx.AsyncClient(base_url=api.url) as client:
        for path in ("/health", "/nowhere", "/v1/models"):
            assert (await client.get(path)).headers["x-specedge-version"] == __version__
        whole = await client.post("/v1/completions", json=body(n=1))
        stream = await client.post("/v1/completions", json=body(n=1, stream=True))
    summary = whole.json()["metrics"]["speculative_decoding"]
    assert int(whole.headers["x-specedge-draft-tokens"]) == summary["num_draft_tokens"]
    assert int(whole.headers["x-specedge-accepted-tokens"]) == summary["num_accepted_draft_tokens"]
    assert float(whole.headers["x-specedge-tokens-per-verification"]) == pytest.approx(
        whole.json()["usage"]["completion_tokens"] / 2, abs=0.001
    )
    assert not [name for name in stream.headers if name.startswith("x-specedge-") and not name.endswith("version")]


def test_verifications_without_a_draft_count_too() -> None:
    summary = SpeculationSummary()
    summary.add(Piece(0, ("a",), ""))
    summary.add(Piece(0, ("b", "c", "d"), "stop", num_draft_nodes=5, num_accepted=2))
    assert summary.as_headers() == {
        "x-specedge-tokens-per-verification": "2.000",
        "x-specedge-draft-tokens": "5",
        "x-specedge-accepted-tokens": "2",
    }
