"""Structured output as its users meet it: real processes, the official client, and a service that is stopped."""

import asyncio
import json
import signal
from collections.abc import Iterator
from typing import Literal

import openai
import psutil
import pydantic
import pytest
from processes import Edge, Verifier, nothing_held, running

MESSAGES = [{"role": "user", "content": "Tell me a tale about a fox who wanted to see the sea."}]


class Tale(pydantic.BaseModel):
    """What is asked for."""

    title: str = pydantic.Field(max_length=20)
    animals: list[Literal["fox", "hen"]] = pydantic.Field(max_length=2)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Verifier, Edge]]:
    folder = tmp_path_factory.mktemp("logs")
    verifier = Verifier(folder, "--num-kv-blocks", "128")
    edge = Edge(folder, "edge", verifier, "--num-draft-slots", "2048")
    with running(verifier, edge):
        yield verifier, edge
    for service in (verifier, edge):
        assert "Traceback" not in service.log(), service.log()


async def test_structured_answers_over_processes_and_none_is_left_behind(processes: tuple[Verifier, Edge]) -> None:
    verifier, edge = processes
    for service in processes:
        await asyncio.to_thread(service.wait_ready)
    wanted = {"model": "specedge-demo", "messages": MESSAGES, "seed": 5, "max_tokens": 200}
    async with edge.client() as client:
        drafted = await client.chat.completions.parse(**wanted, response_format=Tale, temperature=0.7)
        plain = await client.chat.completions.parse(
            **wanted, response_format=Tale, temperature=0.7, extra_body={"speculation": {"enabled": False}}
        )
        assert drafted.choices[0].message.content == plain.choices[0].message.content
        assert isinstance(drafted.choices[0].message.parsed, Tale)
        tool = {"type": "function", "function": {"name": "look", "parameters": Tale.model_json_schema()}}
        called = await client.chat.completions.create(**wanted, tools=[tool], tool_choice="required", temperature=0.7)
        assert json.loads(called.choices[0].message.tool_calls[0].function.arguments).keys() == {"title", "animals"}
        for tools in ([{**tool, "function": {**tool["function"], "name": f"f{i}"}} for i in range(10_000)], [{}]):
            with pytest.raises(openai.BadRequestError) as caught:
                await client.chat.completions.create(**wanted, tools=tools)
            assert "tools" in str(caught.value.body["param"])
    await nothing_held(verifier, edge)
    children = [child for service in processes for child in service.children()]
    assert len(children) == 2, "each side compiles in a process of its own"
    for service in processes:
        service.signal(signal.SIGTERM)
        assert await asyncio.to_thread(service.exit_code) == 0
    gone, alive = await asyncio.to_thread(psutil.wait_procs, children, 10)
    assert (len(gone), alive) == (2, [])
