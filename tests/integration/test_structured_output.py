"""Answers that must follow a grammar: the same with drafts as without, and valid, over real gRPC and real HTTP."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import openai
import pydantic
import pytest
import pytest_asyncio
from grammar_support import EOS, ids
from http_support import RunningApi
from http_support import serving as serving_http
from structured_support import Pair, plainly, request, structured_pair

from specedge.errors import InvalidRequest

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = "Tell me a tale about a fox who wanted to see the sea."
SCHEMA = {
    "type": "object",
    "properties": {
        "animal": {"enum": ["fox", "hen", "badger"]},
        "age": {"type": "integer", "minimum": 1, "maximum": 20},
        "moral": {"type": "string", "maxLength": 30},
    },
    "required": ["animal", "age", "moral"],
    "additionalProperties": False,
}
REGEX = r"(The|A) [a-z]+ (fox|hen) [a-z ,]{5,30}\."
CHOICES = ["The fox ran away.", "The hen ran home.", "Nobody knows."]
EBNF = 'root ::= line line line?\nline ::= "- " [A-Z] [a-z ]{3,40} "\\n"'
SOURCES = {"json_schema": SCHEMA, "regex": REGEX, "choice": CHOICES, "ebnf": EBNF}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": "string", "maxLength": 12}},
                "required": [key],
                "additionalProperties": False,
            },
        },
    }
    for name, key in (("weather", "city"), ("time", "zone"))
]
BAD = {
    "impossible": {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": []}}}},
    "not enforced": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"not": {"type": "null"}}}}
    },
    "regex bomb": {"structured_outputs": {"regex": "|".join(f"{index:x}.*" for index in range(3000))}},
    "ambiguous": {"guided_regex": "(([a-z ]*)*)*X"},
    "never ends": {"guided_grammar": 'root ::= "a" root'},
    "no grammar": {"guided_grammar": "root ::= ("},
}


class Tale(pydantic.BaseModel):
    """What `.parse()` gives."""

    title: str = pydantic.Field(max_length=20)
    animals: list[str] = pydantic.Field(max_length=2)
    is_sad: bool


def follows(kind: str, text: str) -> bool:
    if kind == "json_schema":
        value = json.loads(text)
        return value["animal"] in ("fox", "hen", "badger") and 1 <= value["age"] <= 20 and len(value["moral"]) <= 30
    if kind == "regex":
        return re.fullmatch(REGEX, text) is not None
    if kind == "choice":
        return text in CHOICES
    return re.fullmatch(r"(- [A-Z][a-z ]{3,40}\n){2,3}", text) is not None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair() -> AsyncIterator[Pair]:
    async with structured_pair() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(pair: Pair) -> AsyncIterator[RunningApi]:
    async with serving_http(pair.service) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(api: RunningApi) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def chat(**fields: object) -> dict[str, object]:
    return {"model": "demo", "messages": [{"role": "user", "content": PROMPT}], "seed": 3, **fields}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
async def test_drafts_change_nothing_and_every_answer_follows(pair: Pair, kind: str, temperature: float) -> None:
    wanted = [
        request(PROMPT, kind, SOURCES[kind], temperature=temperature, seed=seed, max_tokens=160, top_p=top_p)
        for seed, top_p in ((1, 1.0), (2, 0.8))
    ]
    drafted = await asyncio.gather(*(pair.answer(each) for each in wanted))
    plain = await asyncio.gather(*(pair.answer(plainly(each)) for each in wanted))
    for with_drafts, without in zip(drafted, plain, strict=True):
        assert with_drafts.token_ids == without.token_ids
        assert without.finish_reason == "stop"
        assert follows(kind, without.text), without.text


async def test_a_verifier_that_drafts_for_itself_gives_the_same_answers(pair: Pair) -> None:
    wanted = [request(PROMPT, kind, SOURCES[kind], temperature=0.7, seed=6, max_tokens=160) for kind in SOURCES]
    plain = await asyncio.gather(*(pair.answer(plainly(each)) for each in wanted))
    async with structured_pair("--system", "server-only", is_drafting=False) as alone:
        found = await asyncio.gather(*(alone.answer(each) for each in wanted))
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in plain]
    assert sum(answer.num_accepted for answer in found) > 0


async def test_an_answer_goes_on_in_the_middle_of_its_grammar_when_its_stream_breaks(pair: Pair) -> None:
    wanted = request(PROMPT, "json_schema", SCHEMA, temperature=0.7, seed=5, max_tokens=160)
    whole = await pair.answer(plainly(wanted))
    num_broken = pair.counters.num_broken
    for cut_after in (1, 9):
        assert replace(await pair.answer(wanted, cut_after), num_accepted=0) == whole
    assert pair.counters.num_broken > num_broken
    assert follows("json_schema", whole.text)


async def test_penalties_stop_tokens_and_min_tokens_keep_to_the_grammar(pair: Pair) -> None:
    for values in (
        {"min_tokens": 60, "max_tokens": 160},  # no answer is so long: it ends where nothing else may follow
        {"ignore_eos": True},
        {"repetition_penalty": 1.5, "frequency_penalty": 1.0},
        {"logit_bias": ((EOS, 50.0), (ids("!")[0], 20.0))},
        {"min_tokens": 20, "stop_token_ids": (ids("{")[0],)},  # the grammar begins with what is held back
    ):
        wanted = request(PROMPT, "json_schema", SCHEMA, **{"temperature": 0.7, "max_tokens": 160, "seed": 4, **values})
        drafted, plain = await asyncio.gather(pair.answer(wanted), pair.answer(plainly(wanted)))
        assert drafted.token_ids == plain.token_ids
        assert plain.finish_reason == "stop" and follows("json_schema", plain.text), (values, plain.text)


async def test_an_answer_that_is_cut_says_so(pair: Pair) -> None:
    wanted = request(PROMPT, "json_schema", SCHEMA, temperature=0.0, max_tokens=160)
    whole = await pair.answer(plainly(wanted))
    for max_tokens in (1, 2, 3, len(whole.token_ids) - 1):
        cut = await pair.answer(replace(wanted, sampling=replace(wanted.sampling, max_tokens=max_tokens)))
        assert (cut.token_ids, cut.finish_reason) == (whole.token_ids[:max_tokens], "length")


async def test_a_resumed_answer_that_does_not_follow_its_grammar_is_refused(pair: Pair) -> None:
    wanted = request(PROMPT, "choice", CHOICES)
    client = pair.service._pool.members[0].client
    stream = client.open_stream  # what an edge with another grammar would send

    def with_wrong_tokens(opening, info):  # type: ignore[no-untyped-def]
        return stream(replace(opening, committed_ids=tuple(ids("A fox"))), info)

    client.open_stream = with_wrong_tokens  # type: ignore[method-assign]
    try:
        with pytest.raises(InvalidRequest, match="committed tokens cannot be continued"):
            await pair.answer(wanted)
    finally:
        client.open_stream = stream  # type: ignore[method-assign]


async def test_the_official_client_parses_what_it_asked_for(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.parse(**chat(response_format=Tale, max_tokens=300, temperature=0.7))
    assert isinstance(answer.choices[0].message.parsed, Tale)
    spoken = await client.responses.parse(
        model="demo",
        input=PROMPT,
        text_format=Tale,
        max_output_tokens=300,
        temperature=0.7,
        extra_body={"seed": 1},  # another one may write strings beyond the limit
    )
    assert isinstance(spoken.output_parsed, Tale)


async def test_answers_in_every_form_follow(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(
        **chat(response_format={"type": "json_object"}, max_tokens=120, temperature=1.0, n=2)
    )
    for choice in whole.choices:
        assert choice.message.content.lstrip().startswith("{")
        assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)
    forms = [
        ("json_schema", {"structured_outputs": {"json": SCHEMA}}),
        ("json_schema", {"guided_json": json.dumps(SCHEMA)}),
        ("regex", {"structured_outputs": {"regex": REGEX}}),
        ("choice", {"guided_choice": CHOICES}),
        ("ebnf", {"structured_outputs": {"grammar": EBNF}}),
    ]
    for kind, form in forms:
        async with await client.chat.completions.create(**chat(max_tokens=200, extra_body=form, stream=True)) as chunks:
            parts = [chunk.choices[0] async for chunk in chunks]
        assert parts[-1].finish_reason == "stop"
        assert follows(kind, "".join(part.delta.content or "" for part in parts))
        text = await client.completions.create(model="demo", prompt=PROMPT, max_tokens=200, seed=1, extra_body=form)
        assert follows(kind, text.choices[0].text)


@pytest.mark.parametrize(
    ("tool_choice", "parallel", "names", "is_stream"),
    [
        ("required", False, {"weather", "time"}, True),
        ("required", True, {"weather", "time"}, False),
        ({"type": "function", "function": {"name": "time"}}, False, {"time"}, False),
    ],
)
async def test_tools_that_must_be_called_are(
    client: openai.AsyncOpenAI, tool_choice: object, parallel: bool, names: set[str], is_stream: bool
) -> None:
    wanted = chat(tools=TOOLS, tool_choice=tool_choice, parallel_tool_calls=parallel, max_tokens=120, temperature=0.7)
    if is_stream:
        async with client.chat.completions.stream(**wanted) as events:
            answer = await events.get_final_completion()
    else:
        answer = await client.chat.completions.create(**wanted)
    (choice,) = answer.choices
    calls = choice.message.tool_calls
    assert not choice.message.content and calls
    assert parallel or (choice.finish_reason, len(calls)) == ("tool_calls", 1)
    for call in calls[: len(calls) - (choice.finish_reason == "length")]:
        assert call.function.name in names
        arguments = json.loads(call.function.arguments)
        assert arguments.keys() == ({"city"} if call.function.name == "weather" else {"zone"})


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("name", BAD)
async def test_a_grammar_that_cannot_be_followed_is_refused_at_once(
    client: openai.AsyncOpenAI, name: str, is_stream: bool
) -> None:
    form = BAD[name]
    neighbour = asyncio.create_task(client.completions.create(model="demo", prompt=PROMPT, max_tokens=150, seed=1))
    started = time.perf_counter()
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(**chat(stream=is_stream, extra_body=form))
    assert time.perf_counter() - started < 10
    assert caught.value.body["param"] == next(iter(form))
    assert (await neighbour).usage.completion_tokens == 150
