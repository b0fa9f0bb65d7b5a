"""Requests that name their answer, over a real socket: taken up, refused, or begun anew."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import until
from http_support import FakeService, RunningApi, serving
from journal_support import Asking, Told, ask, write_key

from edge_agent.http.api_keys import spell_entry
from edge_agent.journal.journal import Journal
from edge_agent.metrics import EdgeMetrics
from specedge.errors import VerifierUnavailable

REPLY = "Once upon a time there was a lighthouse, and its keeper was a cat who could not swim at all."
CHAT = "/v1/chat/completions"
CALL = '<tool_call>\n{"name": "look", "arguments": {"where": "here"}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


def asking(path: str = CHAT, **fields: Any) -> Asking:
    return Asking(path, {"model": "demo", "temperature": 0.5, "ignore_eos": False, **fields}, 200)


@asynccontextmanager
async def journalled(service: FakeService, tmp_path: Path, **settings: Any) -> AsyncIterator[RunningApi]:
    def make_journal(metrics: EdgeMetrics) -> Journal:
        return Journal.open(tmp_path / "journal", write_key(tmp_path), 2**20, 1000.0, metrics.registry)

    async with serving(service, make_journal, **settings) as api:
        yield api


def client_of(api: RunningApi) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=api.url, trust_env=False, timeout=20)


def named(key: str) -> dict[str, str]:
    return {"idempotency-key": key}


FORMS = {
    "chat": asking(),
    "chat stream": asking(stream=True),
    "stop string": asking(stream=True, stop="keeper"),
    "choices": asking("/v1/completions", n=3, stream=True),
    "logprobs": asking("/v1/completions", logprobs=2, echo=True),
    "responses": asking("/v1/responses"),
    "messages": asking("/v1/messages"),
    "messages stream": asking("/v1/messages", stream=True),
    "responses stream": asking("/v1/responses", stream=True),
}


@pytest.mark.parametrize("form", FORMS)
async def test_an_answer_that_broke_off_is_told_from_its_beginning_to_its_end(form: str, tmp_path: Path) -> None:
    service = FakeService(REPLY)
    async with journalled(service, tmp_path) as api, client_of(api) as client:
        undisturbed = await ask(client, FORMS[form])
        service.error_after = (3, VerifierUnavailable("nobody is there"))
        response = await client.post(FORMS[form].path, json=FORMS[form].json, headers=named("k"))
        assert "nobody is there" in response.text
        service.error_after, num_bursts = None, service.num_bursts
        again = await ask(client, FORMS[form], **named("k"))
        assert again.texts == undisturbed.texts
        assert again.is_replayed and service.num_bursts > num_bursts
        assert any(request.committed_ids for request in service.requests)
        num_requests = len(service.requests)
        whole = await ask(client, FORMS[form], **named("k"))
        assert whole == again, "what is whole comes again as it was, its id as well"
        assert len(service.requests) == num_requests


async def test_log_probabilities_and_tool_calls_come_again_as_they_were(tmp_path: Path) -> None:
    service = FakeService(lambda request: CALL + CALL if request.sampling.num_logprobs is None else REPLY)
    async with journalled(service, tmp_path) as api, client_of(api) as client:
        calling = asking(tools=TOOLS)
        first = await ask(client, calling, **named("calls"))
        assert [call["function"]["name"] for call in first.tool_calls[0]] == ["look"] * 2
        assert (await ask(client, calling, **named("calls"))).tool_calls == first.tool_calls
        scored = asking("/v1/completions", logprobs=2, echo=True)
        answers = [(await client.post(scored.path, json=scored.json, headers=named("p"))).json() for _ in range(2)]
        assert answers[0]["choices"] == answers[1]["choices"] and answers[0]["choices"][0]["logprobs"]["tokens"]
        assert answers[0]["usage"] == answers[1]["usage"]


async def test_a_request_without_a_seed_gets_one_that_its_name_decides(tmp_path: Path) -> None:
    service = FakeService(REPLY)
    prompts = asking("/v1/completions", prompt=["one", "two"])
    for headers in (named("a"), named("a"), named("b"), {}, {}):
        async with journalled(service, tmp_path) as api, client_of(api) as client:
            await ask(client, prompts, **headers)
        for file in (tmp_path / "journal").glob("*.answer"):
            os.truncate(file, 0)  # as after a power cut that took all
    seeds = [tuple(request.sampling.seed for request in service.requests[at : at + 2]) for at in range(0, 10, 2)]
    assert seeds[0] == seeds[1] and len({*seeds}) == 4
    assert all(first != second for first, second in seeds)


async def test_a_key_belongs_to_one_body_and_one_api_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(spell_entry("alice", "a-key") + spell_entry("bob", "b-key"))
    service = FakeService(REPLY)
    async with journalled(service, tmp_path, api_keys_file=keys) as api, client_of(api) as client:
        alice, bob = ({"authorization": f"Bearer {key}", **named("k")} for key in ("a-key", "b-key"))
        first = await ask(client, asking(), **alice)
        for path, other in ((CHAT, asking(seed=3)), ("/v1/completions", asking("/v1/completions"))):
            response = await client.post(path, json=other.json, headers=alice)
            assert response.status_code == 422
            error = response.json()["error"]
            assert error["code"] == "idempotency_key_reused" and error["param"] == "Idempotency-Key"
            assert error["message"].count("POST /v1/") == 2 and "'k'" in error["message"]
        reordered = dict(reversed(asking().json.items()))
        response = await client.post(CHAT, json=reordered, headers=alice)
        assert response.json()["id"] == first.answer_id, "the order of fields is no difference"
        others = await ask(client, asking(), **bob)
        assert not others.is_replayed and others.answer_id != first.answer_id
        # A key pays for what was generated for it, once.
        generated = api.sample("specedge_edge_key_generated_tokens_total", key="alice")
        assert generated == api.sample("specedge_edge_key_generated_tokens_total", key="bob")


@pytest.mark.parametrize("name", ["", "a b", "k" * 256, "ü"])
async def test_a_name_is_short_and_visible(name: str, tmp_path: Path) -> None:
    async with journalled(FakeService(REPLY), tmp_path) as api, client_of(api) as client:
        for header in ("idempotency-key", "x-conversation-id"):
            response = await client.post(CHAT, json=asking().json, headers=[(header, name.encode())])
            assert response.status_code == 400
            assert "1 to 255 visible ASCII" in response.json()["error"]["message"]


async def test_a_refused_request_leaves_its_key_free(tmp_path: Path) -> None:
    service = FakeService(REPLY)
    async with journalled(service, tmp_path) as api, client_of(api) as client:
        wrong = await client.post(CHAT, json=asking(top_p=7).json, headers=named("k"))
        assert wrong.status_code == 400
        service.open_error = VerifierUnavailable("nobody is there")
        assert (await client.post(CHAT, json=asking().json, headers=named("k"))).status_code == 503
        service.open_error = None
        assert not (await ask(client, asking(seed=1), **named("k"))).is_replayed


async def test_an_answer_has_one_reader_at_a_time(tmp_path: Path) -> None:
    service = FakeService(REPLY, is_endless=True)
    asked = Asking(CHAT, {"model": "demo", "stream": True}, 400)
    async with journalled(service, tmp_path) as api, client_of(api) as client:
        async with client.stream("POST", CHAT, json=asked.json, headers=named("k")) as stream:
            await anext(stream.aiter_lines())
            response = await client.post(CHAT, json=asked.json, headers=named("k"))
            assert response.status_code == 409 and response.headers["retry-after"] == "1"
            assert response.json()["error"]["code"] == "answer_running"
            assert (await client.post(CHAT, json=asking().json, headers=named("k"))).status_code == 422
        await until(lambda: service.num_open == 0, 5)  # its reader has left
        again = await ask(client, asked, **named("k"))
        assert again.is_replayed and len(again.texts[0]) > len(REPLY)


async def test_a_conversation_knows_its_last_answer_only(tmp_path: Path) -> None:
    service = FakeService(REPLY)
    talk = {"x-conversation-id": "talk"}
    async with journalled(service, tmp_path) as api, client_of(api) as client:
        first = await ask(client, asking(), **talk)
        assert (await ask(client, asking(), **talk)) == Told(first.texts, True, first.answer_id, first.tool_calls)
        second = await ask(client, asking(seed=4), **talk)
        assert not second.is_replayed
        assert (await ask(client, asking(seed=4), **talk)).is_replayed
        assert not (await ask(client, asking(), **talk)).is_replayed
        # The key decides where both are there.
        assert not (await ask(client, asking(), **talk, **named("k"))).is_replayed
        assert (await ask(client, asking(), **named("k"))).is_replayed
    assert len([*(tmp_path / "journal").glob("*.answer")]) == 2


async def test_an_answer_begins_anew_where_the_edge_would_not_give_it_any_more(tmp_path: Path) -> None:
    service = FakeService(REPLY)
    async with journalled(service, tmp_path, max_new_tokens=50) as api, client_of(api) as client:
        body = {name: value for name, value in asking().json.items() if name != "max_tokens"}
        assert (await client.post(CHAT, json=body, headers=named("k"))).status_code == 200
    async with journalled(service, tmp_path, max_new_tokens=20) as api, client_of(api) as client:
        response = await client.post(CHAT, json=body, headers=named("k"))
        assert "idempotent-replayed" not in response.headers
        assert response.json()["usage"]["completion_tokens"] == 20
        assert api.sample("specedge_edge_journal_answers_total", how="begun") == 1


async def test_without_a_journal_names_are_ignored() -> None:
    async with serving(FakeService(REPLY)) as api, client_of(api) as client:
        first, second = [await ask(client, asking(), **named("k")) for _ in range(2)]
        assert first.answer_id != second.answer_id and not second.is_replayed
