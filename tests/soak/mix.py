"""What users of a soak ask: whole and streamed, short and long, with grammars and tools, broken off, and wrong."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import httpx
from processes import Ask, Edge
from resilience.load import make_asks

from specedge.errors import SpecEdgeError

MODEL: Final = "specedge-demo"
ASKS: Final = make_asks(8, 20, 160)
LONG_PROMPT: Final = " ".join(f"The {number} hens went to the market, and the fox went too." for number in range(40))
SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"title": {"type": "string", "maxLength": 20}, "animal": {"enum": ["fox", "hen"]}},
    "required": ["title", "animal"],
    "additionalProperties": False,
}
TOOL: Final = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
USER: Final = [{"role": "user", "content": "Tell me a tale about a fox who wanted to see the sea."}]
WRONG: Final[Sequence[tuple[str, str, int]]] = (
    ("chat/completions", "{", 400),
    ("chat/completions", json.dumps({"messages": USER, "temperature": 9}), 400),
    ("chat/completions", json.dumps({"messages": USER, "model": "another"}), 404),
    ("chat/completions", json.dumps({"messages": "hello"}), 400),
    ("completions", json.dumps({"prompt": "hen " * 5000}), 400),
    ("completions", json.dumps({"prompt": "hen", "max_tokens": 0}), 400),
    ("nothing", "{}", 404),
)


class WrongAnswer(SpecEdgeError):
    """An answer is not what it must be."""


@dataclass(slots=True)
class Turn:
    """One user's turn: where, with what client, and by whose dice; `known` are seeded answers seen before."""

    edge: Edge
    client: Any
    dice: Random
    known: dict[str, str]

    def same(self, name: str, text: str) -> None:
        """A seeded answer; raises WrongAnswer when the same request had another one before."""
        if (expected := self.known.setdefault(name, text)) != text:
            raise WrongAnswer(f"{name} was answered {text[:200]!r}, before {expected[:200]!r}")

    def ask(self) -> Ask:
        """One of the requests."""
        return self.dice.choice(ASKS)


async def streamed(turn: Turn) -> None:
    """A streamed answer."""
    ask = turn.ask()
    turn.same(f"seed {ask.seed}", await ask.streamed(turn.client))


async def whole(turn: Turn) -> None:
    """A whole answer, sometimes without drafts."""
    ask = turn.ask()
    enabled = {"speculation": {"enabled": False}} if turn.dice.random() < 0.2 else {}
    turn.same(f"seed {ask.seed}", await ask.whole(turn.client, **enabled))


async def several(turn: Turn) -> None:
    """Several answers to one request."""
    ask = turn.ask()
    answer = await ask.send(turn.client, n=3)
    texts = [choice.message.content if ask.is_chat else choice.text for choice in answer.choices]
    turn.same(f"seed {ask.seed} three times", json.dumps(texts))
    turn.same(f"seed {ask.seed}", texts[0])


async def long(turn: Turn) -> None:
    """A long prompt, the same for all or one that nobody had before."""
    number = turn.dice.choice((1, turn.dice.randrange(2**31)))
    text = await Ask(f"{number} {LONG_PROMPT}", seed=1, max_tokens=12).whole(turn.client)
    if number == 1:
        turn.same("long", text)


async def structured(turn: Turn) -> None:
    """An answer by a schema."""
    seed = turn.dice.randrange(4)
    wanted = {"type": "json_schema", "json_schema": {"name": "tale", "strict": True, "schema": SCHEMA}}
    answer = await turn.client.chat.completions.create(
        model=MODEL, messages=USER, seed=seed, max_tokens=200, temperature=0.7, response_format=wanted
    )
    (choice,) = answer.choices
    if choice.finish_reason == "stop" and json.loads(choice.message.content).keys() != SCHEMA["properties"].keys():
        raise WrongAnswer(f"the schema was answered by {choice.message.content}")
    turn.same(f"schema, seed {seed}", choice.message.content)


async def called(turn: Turn) -> None:
    """A tool call."""
    seed = turn.dice.randrange(4)
    answer = await turn.client.chat.completions.create(
        model=MODEL, messages=USER, seed=seed, max_tokens=200, tools=[TOOL], tool_choice="required", temperature=0.7
    )
    calls = answer.choices[0].message.tool_calls or []
    turn.same(f"tool, seed {seed}", json.dumps([call.function.arguments for call in calls]))


async def with_logprobs(turn: Turn) -> None:
    """An answer with log-probabilities."""
    ask = turn.ask()
    fields = {"logprobs": True, "top_logprobs": 2} if ask.is_chat else {"logprobs": 2}
    (choice,) = (await ask.send(turn.client, **fields)).choices
    turn.same(f"seed {ask.seed}", choice.message.content if ask.is_chat else choice.text)


async def broken_off(turn: Turn) -> None:
    """A stream that its user leaves."""
    ask, num_left = turn.ask(), turn.dice.randrange(1, 10)
    async with await ask.send(turn.client, stream=True) as chunks:
        async for _ in chunks:
            num_left -= 1
            if not num_left:
                return


async def given_up(turn: Turn) -> None:
    """A whole answer that its user does not wait for."""
    try:
        async with asyncio.timeout(turn.dice.uniform(0.005, 0.3)):
            await turn.ask().send(turn.client)
    except TimeoutError:
        return


async def wrong(turn: Turn) -> None:
    """A request that cannot be answered."""
    path, body, status = turn.dice.choice(WRONG)
    async with httpx.AsyncClient(trust_env=False, timeout=120) as client:
        headers = {"content-type": "application/json"}
        answer = await client.post(f"{turn.edge.url}/v1/{path}", content=body, headers=headers)
    if answer.is_server_error and status < 500:
        answer.raise_for_status()
    if answer.status_code != status:
        raise WrongAnswer(f"{path} {body[:100]} had status {answer.status_code} for {status}: {answer.text[:200]}")


MIX: Final[dict[Callable[[Turn], Awaitable[None]], int]] = {
    streamed: 6,
    whole: 3,
    several: 1,
    long: 1,
    structured: 2,
    called: 1,
    with_logprobs: 1,
    broken_off: 3,
    given_up: 2,
    wrong: 3,
}
"""Each kind of turn with its weight."""


@dataclass(slots=True)
class Tally:
    """How many turns of each kind there were, and what was wrong with some."""

    num_turns: dict[str, int] = field(default_factory=dict)
    num_excused: int = 0
    problems: list[str] = field(default_factory=list)
