"""Traced streams: each token's source, each round's trie and times; and where a trace is refused."""

import json
from typing import Any

import httpx
import pytest
from edge_harness import bursts_of, edge_at, wanted
from fakes import FakeEngine, TreeDrafts
from fakes import serving as verifying
from http_support import FakeService, RunningApi, ids, serving
from tcp_proxy import TcpProxy

from edge_agent.draft_trace import RoundTrace, TrieTrace

USER: list[Any] = [{"role": "user", "content": "Tell me a tale."}]
STORY = "Naïve 🙂 rabbits."


async def chunks_of(api: RunningApi, path: str = "/v1/chat/completions", **body: Any) -> list[dict[str, Any]]:
    fields = {"prompt": "Hi", "max_tokens": 99} if path == "/v1/completions" else {"messages": USER}
    async with httpx.AsyncClient(base_url=api.url, trust_env=False) as client:
        answer = await client.post(path, json={**fields, "stream": True, **body})
    assert answer.status_code == 200, answer.text
    frames = answer.text.removesuffix("\n\n").split("\n\n")
    assert frames.pop() == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("burst_size", [1, 3, 50])
async def test_every_token_is_told_with_its_source(path: str, burst_size: int) -> None:
    async with serving(FakeService(STORY, burst_size=burst_size)) as api:
        plain = await chunks_of(api, path)
        chunks = await chunks_of(api, path, speculation={"trace": True})
    assert not any("specedge" in chunk for chunk in plain)
    traces = [chunk["specedge"] for chunk in chunks if "specedge" in chunk]
    tokens = [token for trace in traces for token in trace["tokens"]]
    assert "".join(token["text"] for token in tokens) == STORY
    assert len(tokens) == len(ids(STORY)) + 1, "the end-of-sequence token too, and tokens of parts of characters"
    for trace in traces:
        *drafted, bonus = trace["tokens"]
        assert [token["source"] for token in drafted] == ["draft"] * trace["round"]["num_accepted"]
        assert bonus["source"] == "bonus"
        assert [token["depth"] for token in trace["tokens"]] == list(range(1, len(drafted) + 2))
        assert trace["round"]["num_nodes"] == 2 * len(drafted)


async def test_a_round_tells_its_trie_and_what_was_measured() -> None:
    rabbit, part = ids(" rabbit")[0], ids("🙂")[-1]
    service = FakeService(STORY)
    trie = TrieTrace(5, (-1, 0), (rabbit, part), (0, 1), None, looked_up=(1,))
    service.round = RoundTrace(trie, 0.004, 0.0015, 0.01412345)
    async with serving(service) as api:
        chunks = await chunks_of(api, speculation={"trace": True})
        service.round = RoundTrace(None, 0.004, None, None)
        bare = await chunks_of(api, speculation={"trace": True, "enabled": False})
    first = chunks[1]["specedge"]["round"]
    times = {"queue_ms": 0.25, "step_ms": 1.5, "gap_ms": 4.0, "draft_ms": 1.5, "network_ms": 14.123}
    assert first | times == first
    texts = [" rabbit", "\ufffd"]  # the last byte of a character by itself
    nodes = {"num_live": 5, "parents": [-1, 0], "texts": texts}
    assert first["trie"] == {**nodes, "accepted": [0, 1], "bonus": None, "looked_up": [1]}
    assert [token["source"] for token in chunks[1]["specedge"]["tokens"]] == ["draft", "lookup", "bonus"]
    assert not {"trie", "draft_ms", "network_ms"} & bare[1]["specedge"]["round"].keys(), "what is not known is left out"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": USER}),
        ("/v1/completions", {"prompt": "x", "stream": False}),
        ("/v1/messages", {"messages": USER, "max_tokens": 5, "stream": True}),
        ("/v1/responses", {"input": "x", "stream": True}),
    ],
)
async def test_a_trace_that_could_not_be_shown_is_refused(path: str, body: dict[str, Any]) -> None:
    async with serving(FakeService(STORY)) as api, httpx.AsyncClient(base_url=api.url, trust_env=False) as client:
        answer = await client.post(path, json={**body, "speculation": {"trace": True}})
    assert answer.status_code == 400
    assert "speculation.trace" in answer.json()["error"]["message"]
    assert not api.service.requests


async def test_rounds_stay_true_over_broken_connections() -> None:
    engine, drafts = FakeEngine(patience_s=5.0, step_s=0.002), TreeDrafts(12, 2)
    async with verifying(engine) as server:
        proxy = TcpProxy(server.port)
        await proxy.start()
        async with edge_at(proxy.port, drafts) as edge:
            async with edge.service.generate(wanted(60, is_traced=True)) as stream:
                bursts = []
                async for burst in stream:
                    bursts.append(burst)
                    if len(bursts) == 5:
                        proxy.cut()
            assert edge.counters.num_broken == 1
            plain = await bursts_of(edge.service, wanted(60))
        await proxy.close()
    assert [t for b in bursts for t in b.token_ids] == [t for b in plain for t in b.token_ids]
    assert sum(burst.num_accepted for burst in bursts[6:]), "drafts were accepted after the break too"
    for burst in bursts:
        trace = burst.stats.round
        assert trace is not None and trace.gap_s >= (trace.draft_s or 0)
        if burst.num_accepted:
            assert trace.trie is not None
            path = [trace.trie.token_ids[index] for index in trace.trie.accepted]
            assert path == list(burst.token_ids[: burst.num_accepted])
    assert all(burst.stats.round is None for burst in plain)
