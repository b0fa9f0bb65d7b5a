"""The HTTP API as the official client sees it, over real sockets: answers streamed and whole, chats and texts."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import httpx
import openai
import pytest
from http_support import FakeService, RunningApi, ids, serving, tokenizer

USER: list[Any] = [{"role": "user", "content": "Tell me a tale."}]
STORY = "Once upon a time 🙂 there was a rabbit."


@asynccontextmanager
async def client_of(service: FakeService, **settings: Any) -> AsyncIterator[tuple[Any, RunningApi]]:
    """An official client, typed as anything: its overloads know only OpenAI's own fields."""
    async with (
        serving(service, **settings) as api,
        openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="unused", max_retries=0) as client,
    ):
        yield client, api


async def events_of(api: RunningApi, path: str, **body: Any) -> list[Any]:
    """A stream's data lines, parsed; the last one must be [DONE]."""
    async with (
        httpx.AsyncClient(base_url=api.url) as client,
        client.stream("POST", path, json={**body, "stream": True}) as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        text = (await response.aread()).decode()
    frames = text.split("\n\n")
    assert frames.pop() == ""
    assert all(frame.startswith("data: ") for frame in frames)
    assert frames.pop() == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


@pytest.mark.parametrize("burst_size", [1, 3, 50])
async def test_a_whole_chat(burst_size: int) -> None:
    async with client_of(FakeService(STORY, burst_size=burst_size)) as (client, api):
        answer = await client.chat.completions.create(model="demo", messages=USER)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "demo"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == STORY
    assert answer.choices[0].finish_reason == "stop"
    prompt_ids = tokenizer().apply_chat_template(USER, add_generation_prompt=True)["input_ids"]
    assert list(api.service.requests[0].prompt_ids) == prompt_ids
    assert answer.usage.prompt_tokens == len(prompt_ids)
    assert answer.usage.completion_tokens == len(ids(STORY)) + 1, "the end-of-sequence token counts"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("burst_size", [1, 3, 50])
async def test_a_streamed_chat(burst_size: int) -> None:
    async with client_of(FakeService(STORY, burst_size=burst_size)) as (client, _):
        chunks = [
            chunk async for chunk in await client.chat.completions.create(model="demo", messages=USER, stream=True)
        ]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert all(delta.role is None for delta in deltas[1:])
    assert "".join(delta.content or "" for delta in deltas) == STORY
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk.usage is None for chunk in chunks)


async def test_a_whole_completion_and_a_streamed_one() -> None:
    async with client_of(FakeService(STORY)) as (client, api):
        whole = await client.completions.create(model="demo", prompt="Hello", max_tokens=50)
        stream = await client.completions.create(model="demo", prompt="Hello", max_tokens=50, stream=True)
        chunks = [chunk async for chunk in stream]
    assert whole.object == "text_completion"
    assert whole.id.startswith("cmpl-")
    assert whole.choices[0].text == "".join(chunk.choices[0].text for chunk in chunks) == STORY
    assert whole.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "stop"
    assert list(api.service.requests[0].prompt_ids) == ids("Hello")


async def test_the_synchronous_client_works_too() -> None:
    def ask(url: str) -> str:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
            stream = client.chat.completions.create(model="demo", messages=USER, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    async with serving(FakeService(STORY)) as api:
        assert await asyncio.to_thread(ask, api.url) == STORY


async def test_prompts_in_all_forms() -> None:
    service = FakeService(lambda request: tokenizer().decode(request.prompt_ids) + "!")
    async with client_of(service) as (client, _):
        for prompt, texts in (
            (["one", "two"], ["one!", "two!"]),
            (ids("one"), ["one!"]),
            ([ids("one"), ids("two words")], ["one!", "two words!"]),
        ):
            answer = await client.completions.create(model="demo", prompt=prompt)
            assert [choice.text for choice in answer.choices] == texts
            assert [choice.index for choice in answer.choices] == list(range(len(texts)))
        assert answer.usage.prompt_tokens == len(ids("one")) + len(ids("two words"))


async def test_several_choices_have_consecutive_seeds_and_are_interleaved() -> None:
    service = FakeService(lambda request: f"This is the tale of seed {request.sampling.seed}.", burst_size=1)
    expected = {0: "This is the tale of seed 7.", 1: "This is the tale of seed 8."}
    async with client_of(service) as (client, api):
        answer = await client.chat.completions.create(model="demo", messages=USER, n=2, seed=7)
        assert {choice.index: choice.message.content for choice in answer.choices} == expected
        assert answer.usage.prompt_tokens == len(service.requests[0].prompt_ids), "the prompt counts once"
        events = await events_of(api, "/v1/chat/completions", model="demo", messages=USER, n=2, seed=7)
    texts, order = {0: "", 1: ""}, []
    for event in events:
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        order.append(choice["index"])
    assert texts == expected
    assert order != sorted(order), "the second answer must not wait for the first"
    openings = [event["choices"][0] for event in events if "role" in event["choices"][0]["delta"]]
    assert sorted(choice["index"] for choice in openings) == [0, 1]


async def test_prompts_and_choices_together_are_numbered_by_prompt() -> None:
    service = FakeService(lambda request: f"{tokenizer().decode(request.prompt_ids)} {request.sampling.seed}")
    async with client_of(service) as (client, _):
        answer = await client.completions.create(model="demo", prompt=["a", "b"], n=2, seed=1)
    assert [choice.text for choice in answer.choices] == ["a 1", "a 2", "b 1", "b 2"]


@pytest.mark.parametrize("burst_size", [1, 2, 4, 50])
@pytest.mark.parametrize("stream", [False, True])
async def test_stop_strings_end_the_answer_wherever_bursts_end(burst_size: int, stream: bool) -> None:
    async with client_of(FakeService(STORY, burst_size=burst_size)) as (client, api):
        options = {"include_usage": True} if stream else openai.omit
        answer = await client.chat.completions.create(
            model="demo", messages=USER, stop=["never", "there was"], stream=stream, stream_options=options
        )
        if stream:
            chunks = [chunk async for chunk in answer]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
            finish_reason, usage = chunks[-2].choices[0].finish_reason, chunks[-1].usage
        else:
            text, finish_reason = answer.choices[0].message.content, answer.choices[0].finish_reason
            usage = answer.usage
        assert text == "Once upon a time 🙂 "
        assert finish_reason == "stop"
        assert usage.completion_tokens == len(ids("Once upon a time 🙂 there was")), "counted to the end of the stop"
        assert api.service.num_open == 0


async def test_a_stop_strings_beginning_that_came_to_nothing_is_shown() -> None:
    async with client_of(FakeService("to be or not to b", burst_size=1)) as (client, _):
        answer = await client.completions.create(model="demo", prompt="x", stop="to be!")
    assert answer.choices[0].text == "to be or not to b"
    assert answer.choices[0].finish_reason == "stop"


async def test_stop_strings_do_not_count_before_min_tokens() -> None:
    async with client_of(FakeService("a a a a a a", burst_size=2)) as (client, _):
        answer = await client.completions.create(model="demo", prompt="x", stop=" a", extra_body={"min_tokens": 3})
    assert answer.choices[0].text == "a a a"


async def test_lengths_and_stop_tokens() -> None:
    rabbit = ids(" rabbit")[0]
    async with client_of(FakeService("a little rabbit ran")) as (client, _):
        short = await client.chat.completions.create(model="demo", messages=USER, max_completion_tokens=2, max_tokens=9)
        assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)
        stopped = await client.completions.create(model="demo", prompt="x", extra_body={"stop_token_ids": [rabbit]})
        assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("a little", "stop")
        ignored = await client.completions.create(
            model="demo", prompt="x", max_tokens=7, extra_body={"ignore_eos": True, "min_tokens": 2}
        )
        assert len(ids("a little rabbit ran")) == 4
        assert ignored.choices[0].text == "a little rabbit rana little", "the end-of-sequence token has no text"
        assert (ignored.choices[0].finish_reason, ignored.usage.completion_tokens) == ("length", 7)


async def test_default_lengths() -> None:
    async with client_of(FakeService(), max_new_tokens=40) as (client, api):
        await client.chat.completions.create(model="demo", messages=USER)
        await client.completions.create(model="demo", prompt="x")
        assert [request.sampling.max_tokens for request in api.service.requests] == [40, 16]
    async with client_of(FakeService()) as (client, api):
        await client.chat.completions.create(model="demo", messages=USER)
        assert api.service.requests[0].sampling.max_tokens == 1024 - len(api.service.requests[0].prompt_ids)


async def test_sampling_fields_reach_the_session() -> None:
    async with client_of(FakeService()) as (client, api):
        await client.chat.completions.create(
            model="demo",
            messages=USER,
            temperature=0.3,
            top_p=0.8,
            seed=-1,
            presence_penalty=0.5,
            frequency_penalty=0.25,
            logit_bias={"17": -100},
            max_tokens=5,
            extra_body={"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "unheard_of": 1, "priority": 3}
            | {"cache_salt": "of alice", "speculation": {"enabled": False, "budget": 7}},
        )
    (request,) = api.service.requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.3, 0.8, 0, 0.0)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.5, 0.25, 1.0)
    assert (sampling.seed, sampling.logit_bias, sampling.max_tokens) == (2**64 - 1, ((17, -100.0),), 5)
    assert (request.speculate, request.max_draft_nodes) == (False, 7)
    assert request.priority == -3, "clients serve low numbers first, the wire high ones"
    assert request.cache_salt == sha256(b"of alice").digest()


async def test_usage_in_a_stream() -> None:
    async with client_of(FakeService(STORY, burst_size=4)) as (_, api):
        body = {"model": "demo", "messages": USER}
        usage_only = await events_of(api, "/v1/chat/completions", **body, stream_options={"include_usage": True})
        options = {"include_usage": True, "continuous_usage_stats": True}
        continuous = await events_of(api, "/v1/chat/completions", **body, stream_options=options)
    assert [event["usage"] for event in usage_only[:-1]] == [None] * (len(usage_only) - 1)
    last = usage_only[-1]
    assert last["choices"] == []
    num_tokens = len(ids(STORY)) + 1
    assert last["usage"]["completion_tokens"] == num_tokens
    counts = [event["usage"]["completion_tokens"] for event in continuous]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (4, num_tokens)
    summary = last["metrics"]["speculative_decoding"]
    assert summary["num_spec_steps"] + summary["num_accepted_draft_tokens"] == num_tokens
    assert summary["draft_acceptance_rate"] == 0.5
    assert summary["mean_acceptance_length"] == num_tokens / summary["num_spec_steps"]
    histogram = summary["acceptance_histogram"]
    assert len(histogram) == summary["num_spec_tokens"] + 1
    assert sum(histogram) == summary["num_spec_steps"]
    assert sum(num * steps for num, steps in enumerate(histogram)) == summary["num_accepted_draft_tokens"]


async def test_models() -> None:
    async with client_of(FakeService(), model_name="org/demo") as (client, _):
        (model,) = [model async for model in client.models.list()]
        assert (model.id, model.object, model.max_model_len) == ("org/demo", "model", 1024)
        assert (await client.models.retrieve("org/demo")).id == "org/demo"
        answer = await client.chat.completions.create(model="org/demo", messages=USER)
        assert answer.model == "org/demo"
    async with client_of(FakeService(), model_name=None) as (client, _):
        assert [model.id async for model in client.models.list()] == ["demo-target"]


async def test_many_clients_at_a_time_each_get_their_own_answer() -> None:
    service = FakeService(lambda request: f"Seed {request.sampling.seed}, {tokenizer().decode(request.prompt_ids)}")
    async with client_of(service) as (client, _):

        async def ask(index: int) -> None:
            prompt = f"story number {index}"
            if index % 2:
                stream = await client.completions.create(
                    model="demo", prompt=prompt, seed=index, max_tokens=60, stream=True
                )
                text = "".join([chunk.choices[0].text async for chunk in stream])
            else:
                answer = await client.completions.create(model="demo", prompt=prompt, seed=index, max_tokens=60)
                text = answer.choices[0].text
            assert text == f"Seed {index}, story number {index}"

        await asyncio.gather(*(ask(index) for index in range(32)))
    assert service.num_open == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_the_text_may_end_with_what_stopped_it(stream: bool) -> None:
    async def text_of(client: Any, **fields: Any) -> str:
        answer = await client.completions.create(model="demo", prompt="a", max_tokens=50, stream=stream, **fields)
        return "".join([c.choices[0].text async for c in answer]) if stream else answer.choices[0].text

    keep = {"include_stop_str_in_output": True}
    async with client_of(FakeService(STORY, burst_size=50)) as (client, _):
        assert await text_of(client, stop="rab", extra_body=keep) == STORY[: STORY.index("rab") + 3]
        assert await text_of(client, stop="rab") == STORY[: STORY.index("rab")]
        assert await text_of(client, extra_body=keep) == STORY, "the end-of-sequence token is special"
        shown = {"skip_special_tokens": False}
        assert await text_of(client, extra_body=keep | shown) == STORY + tokenizer().convert_ids_to_tokens(2)
        assert await text_of(client, extra_body=shown) == STORY


@pytest.mark.parametrize("burst_size", [1, 3, 50])
async def test_what_the_model_thinks_is_apart_from_what_it_says(burst_size: int) -> None:
    service = FakeService("<think>\nA rabbit?\n</think>\n\nOnce upon a time.", burst_size=burst_size)
    async with client_of(service, splits_reasoning=True) as (client, api):
        whole = (await client.chat.completions.create(model="demo", messages=USER)).choices[0].message
        silent = await client.chat.completions.create(
            model="demo", messages=USER, extra_body={"include_reasoning": False}
        )
        events = await events_of(api, "/v1/chat/completions", model="demo", messages=USER)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert (whole.content, whole.reasoning, whole.reasoning_content) == ("Once upon a time.", *["A rabbit?"] * 2)
    assert "".join(delta.get("content", "") for delta in deltas) == whole.content
    for name in ("reasoning", "reasoning_content"):
        assert "".join(delta.get(name, "") for delta in deltas) == whole.reasoning
        assert not hasattr(silent.choices[0].message, name)
    assert silent.choices[0].message.content == whole.content


TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}},
    {"type": "function", "function": {"name": "clock"}},
]
CALLING = (
    'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo 🙂"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
)


@pytest.mark.parametrize("burst_size", [1, 4, 100])
async def test_tool_calls_whole_and_streamed(burst_size: int) -> None:
    async with client_of(FakeService(CALLING, burst_size=burst_size)) as (client, _):
        whole = (await client.chat.completions.create(model="demo", messages=USER, tools=TOOLS)).choices[0]
        async with client.chat.completions.stream(model="demo", messages=USER, tools=TOOLS) as stream:
            streamed = (await stream.get_final_completion()).choices[0]
        unasked = (await client.chat.completions.create(model="demo", messages=USER)).choices[0]
        refused = (
            await client.chat.completions.create(model="demo", messages=USER, tools=TOOLS, tool_choice="none")
        ).choices[0]
    for choice in (whole, streamed):
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Let me look."
        called = [(call.type, call.function.name, call.function.arguments) for call in choice.message.tool_calls]
        assert called == [("function", "weather", '{"city": "Oslo 🙂"}'), ("function", "clock", "{}")]
        assert len({call.id for call in choice.message.tool_calls}) == 2
    for choice in (unasked, refused):
        assert (choice.finish_reason, choice.message.content, choice.message.tool_calls) == ("stop", CALLING, None)


async def test_a_tools_result_is_part_of_the_conversation() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "UTC"}'}}
    messages = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
    ]
    async with client_of(FakeService()) as (client, api):
        await client.chat.completions.create(model="demo", messages=messages, tools=TOOLS)
    prompt = tokenizer().decode(api.service.requests[0].prompt_ids)
    assert prompt.endswith("<|im_start|>tool\nnoon<|im_end|>\n<|im_start|>assistant\n")
