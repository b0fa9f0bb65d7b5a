"""Predicted Outputs as the official client sees them: refusals, what drafting is told, and usage."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from http_support import FakeService, RunningApi, ids, serving

USER: list[Any] = [{"role": "user", "content": "Tell me a tale."}]
STORY = "Once upon a time there was a little rabbit who lived in a big forest with his mother."
EDITED = STORY.replace("rabbit", "bear")


@asynccontextmanager
async def client_of(service: FakeService) -> AsyncIterator[tuple[Any, RunningApi]]:
    """An official client, typed as anything: its overloads know only OpenAI's own fields."""
    async with (
        serving(service) as api,
        openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="unused", max_retries=0) as client,
    ):
        yield client, api


async def answer_to(client: Any, content: Any, **body: Any) -> Any:
    return await client.chat.completions.create(
        model="demo", messages=USER, prediction={"type": "content", "content": content}, **body
    )


@pytest.mark.parametrize("burst_size", [1, 3, 50])
async def test_usage_tells_what_of_a_prediction_came_true(burst_size: int) -> None:
    async with client_of(FakeService(STORY, burst_size=burst_size)) as (client, api):
        same = (await answer_to(client, STORY)).usage
        edited = (await answer_to(client, EDITED)).usage
        other = (await answer_to(client, "zzz qqq")).usage
        none = (await client.chat.completions.create(model="demo", messages=USER)).usage
    assert [request.prediction_ids for request in api.service.requests[:2]] == [tuple(ids(STORY)), tuple(ids(EDITED))]
    details = same.completion_tokens_details
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (len(ids(STORY)), 0)
    details = edited.completion_tokens_details
    assert details.accepted_prediction_tokens + details.rejected_prediction_tokens == len(ids(EDITED))
    assert 1 <= details.rejected_prediction_tokens <= 3
    details = other.completion_tokens_details
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (0, len(ids("zzz qqq")))
    assert none.completion_tokens_details is None
    assert same.completion_tokens == none.completion_tokens, "what was predicted wrongly is not counted as generated"


async def test_streams_tell_it_with_their_usage_and_the_text_is_cut_by_stops() -> None:
    async with client_of(FakeService(STORY)) as (client, _):
        stream = await answer_to(
            client, STORY, stream=True, stream_options={"include_usage": True}, stop=[" rabbit"], n=2
        )
        usage = [chunk async for chunk in stream][-1].usage
    num_taken = len(ids("Once upon a time there was a little rabbit"))
    details = usage.completion_tokens_details
    assert details.accepted_prediction_tokens == 2 * num_taken == usage.completion_tokens
    assert details.rejected_prediction_tokens == 2 * (len(ids(STORY)) - num_taken)


async def test_parts_are_one_text_and_an_empty_prediction_is_none() -> None:
    parts = [{"type": "text", "text": STORY[:20]}, {"type": "text", "text": STORY[20:]}]
    async with client_of(FakeService(STORY)) as (client, api):
        await answer_to(client, parts)
        usage = (await answer_to(client, "")).usage
    assert api.service.requests[0].prediction_ids == tuple(ids(STORY))
    assert api.service.requests[1].prediction_ids == ()
    assert usage.completion_tokens_details is None


@pytest.mark.parametrize(
    ("prediction", "param"),
    [
        ("a text", "prediction"),
        ({"content": "x"}, "prediction.type"),
        ({"type": "text", "content": "x"}, "prediction.type"),
        ({"type": "content"}, "prediction.content"),
        ({"type": "content", "content": 3}, "prediction.content"),
        ({"type": "content", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}, "prediction.content[1]"),
        ({"type": "content", "content": "word " * 200_000}, "prediction"),
        ({"type": "content", "content": "a b c d " * 300}, "prediction"),
    ],
)
async def test_what_is_no_prediction_is_refused_by_name(prediction: Any, param: str) -> None:
    async with client_of(FakeService(STORY)) as (client, _):
        with pytest.raises(openai.BadRequestError) as refusal:
            await client.chat.completions.create(model="demo", messages=USER, extra_body={"prediction": prediction})
    assert refusal.value.param == param
