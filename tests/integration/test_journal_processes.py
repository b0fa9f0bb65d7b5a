"""An edge agent is killed in the middle of answers; asked again, it tells them from the beginning to the end."""

import asyncio
import json
import signal
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from journal_support import SECRET, Asking, Told, ask, begin, write_key
from processes import Edge, Verifier, running

from edge_agent.journal.key import JournalKey

ASKINGS = {
    "chat": Asking("/v1/chat/completions", {"stream": True, "seed": 5}),
    "no-seed": Asking("/v1/chat/completions", {"stream": True}),
    "two-choices": Asking("/v1/completions", {"stream": True, "n": 2}),
    "responses": Asking("/v1/responses", {"stream": True, "seed": 6}),
    "messages": Asking("/v1/messages", {"stream": True}),
}
WHOLE = Asking("/v1/completions", {"seed": 9})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journal")


@pytest.fixture(scope="module")
def edge(folder: Path) -> Iterator[Edge]:
    # Paced, so that answers take long without computing much.
    verifier = Verifier(folder, "--num-kv-blocks", "400", "--pad-frames", "256", "--frame-interval-ms", "12")
    journal = [
        "--journal-dir",
        str(folder / "journal"),
        "--journal-key-file",
        str(write_key(folder)),
        "--drain-timeout-s",
        "1",
    ]
    edge = Edge(folder, "edge", verifier, "--draft-model", "none", *journal)
    with running(verifier, edge):
        yield edge


def client_of(edge: Edge) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=edge.url, trust_env=False, timeout=120)


async def kill(edge: Edge, *tasks: "asyncio.Task[object]", after_s: float = 0.3) -> None:
    """Without a word, while the tasks run; then it is there again."""
    await asyncio.sleep(after_s)
    assert not any(task.done() for task in tasks), "an answer that is over cannot break off"
    edge.signal(signal.SIGKILL)
    edge.exit_code()
    edge.start()
    await asyncio.to_thread(edge.wait_ready)


async def test_answers_that_a_kill_broke_off_are_told_from_beginning_to_end(edge: Edge) -> None:
    async with client_of(edge) as client:
        begun = {name: asyncio.Event() for name in ASKINGS}
        streams = {
            name: asyncio.create_task(begin(client, asking, begun[name], **{"idempotency-key": name}))
            for name, asking in ASKINGS.items()
        }
        whole = asyncio.create_task(client.post(WHOLE.path, json=WHOLE.json, headers={"x-conversation-id": "whole"}))
        await asyncio.gather(*(event.wait() for event in begun.values()))
        await kill(edge, *streams.values(), whole)
        with pytest.raises(httpx.TransportError):
            await whole
        seen = {name: await stream for name, stream in streams.items()}
        assert all(seen.values()), "what showed nothing tests nothing"

        async def again(name: str) -> Told:
            return await ask(client, ASKINGS[name], **{"idempotency-key": name})

        told = dict(zip(ASKINGS, await asyncio.gather(*map(again, ASKINGS)), strict=True))
        told["whole"] = await ask(client, WHOLE, **{"x-conversation-id": "whole"})
        for name, answer in told.items():
            assert answer.is_replayed, f"{name} began anew"
            assert answer.texts[0].startswith(seen.get(name, ""))
        askings = {**ASKINGS, "whole": WHOLE}
        undisturbed = await asyncio.gather(*(ask(client, _with_seed(name, asking)) for name, asking in askings.items()))
        for name, answer in zip(askings, undisturbed, strict=True):
            assert not answer.is_replayed
            assert told[name].texts == answer.texts, name
        # Once more, whole by now: nothing is generated for it.
        num_generated = await edge.sample("specedge_edge_generated_tokens_total")
        assert await again("two-choices") == told["two-choices"]
        assert await edge.sample("specedge_edge_generated_tokens_total") == num_generated


def _with_seed(name: str, asking: Asking) -> Asking:
    """The same request with the seed that the journal drew for it."""
    if "seed" in asking.body:
        return asking
    key = JournalKey(SECRET)
    file = key.name_of(b"", b"Idempotency-Key", name.encode())
    body = sha256(json.dumps(asking.json, sort_keys=True).encode()).hexdigest()
    seed = key.seed_of(f"{file} {asking.path} {body} 1".encode())
    return Asking(asking.path, {**asking.body, "seed": seed}, asking.max_tokens)


async def test_an_edge_that_is_stopped_ends_its_streams_with_a_word(edge: Edge) -> None:
    """The last test: the edge does not come back."""
    asking = ASKINGS["chat"]
    lines: list[str] = []
    async with client_of(edge) as client, client.stream("POST", asking.path, json=asking.json) as response:
        async for line in response.aiter_lines():
            if not lines:
                edge.signal(signal.SIGTERM)
            lines += [line] if line else []
    assert edge.exit_code() == 0
    assert lines[-1] == "data: [DONE]"
    error = json.loads(lines[-2].removeprefix("data: "))["error"]
    assert error["code"] == "edge_stopping" and error["type"] == "server_error"
