"""The edge's side of the wire over real sockets: answers, refusals, slow and leaving consumers."""

import asyncio
import socket
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from edge_harness import PROMPT, QUICK, Edge, answer_of, bursts_of, edge_at, wanted
from fakes import FINGERPRINT, INFO, VOCAB_SIZE, FakeEngine, TreeDrafts, expected_answer, serving, until

from edge_agent.draft_source import NullDraftSource
from edge_agent.generation import GenerationOptions, GenerationRequest
from edge_agent.known_refusal import TRUST_S
from edge_agent.stream_observer import StreamCounters
from edge_agent.verifier_backoff import Backoff
from edge_agent.verifier_client import VerifierClient
from edge_agent.verifier_pool import VerifierPool
from specedge.errors import (
    CapacityExceeded,
    InvalidRequest,
    ModelLoadError,
    ProtocolError,
    VerifierUnavailable,
)
from specedge.sampling import SamplingParams
from specedge.wire.messages import PROGRESS, TELL_WITHIN_S, DraftNodes, OpenSession, SessionOpened, Verdict
from specedge_bench.network.profiles import network_profile
from specedge_bench.network.proxy import NetworkProxy
from specedge_verifier.bridge import Outbox


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


async def test_an_answer_arrives_in_bursts_of_accepted_drafts_and_a_token_of_the_targets_own() -> None:
    engine, drafts = FakeEngine(patience_s=5.0), TreeDrafts(num_nodes=12, num_right=3)
    async with serving(engine) as server, edge_at(server.port, drafts) as edge:
        bursts = await bursts_of(edge.service, wanted(40))
        await until(lambda: server.service.num_streams == 0)
    assert [token_id for burst in bursts for token_id in burst.token_ids] == expected_answer(PROMPT, 40)
    assert [len(burst.token_ids) for burst in bursts] == [4] * 10
    assert [burst.num_accepted for burst in bursts] == [3] * 10
    assert [burst.finish_reason for burst in bursts] == [""] * 9 + ["length"]
    assert bursts[0].stats.step_us == 23456
    assert bursts[0].stats.num_nodes_verified >= 3
    assert edge.counters.num_verdicts == 10
    assert edge.counters.num_nodes_sent == engine.num_nodes_received
    assert edge.counters.num_bytes_sent > 0
    assert edge.counters.num_broken == 0
    assert drafts.sessions[0].is_closed


async def test_without_speculation_nothing_is_drafted() -> None:
    engine, drafts = FakeEngine(), TreeDrafts()
    async with serving(engine) as server, edge_at(server.port, drafts) as edge:
        assert await answer_of(edge.service, wanted(20, speculate=False)) == expected_answer(PROMPT, 20)
    assert engine.opened[0].system == "autoregressive"
    assert drafts.sessions == []


async def test_a_verifier_without_draft_tries_is_sent_none() -> None:
    engine, drafts = FakeEngine(replace(INFO, capabilities=())), TreeDrafts()
    async with serving(engine) as server, edge_at(server.port, drafts) as edge:
        assert await answer_of(edge.service, wanted(20)) == expected_answer(PROMPT, 20)
    assert drafts.sessions == []


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("logprobs", {"num_logprobs": 0}),
        ("prompt_logprobs", {"num_prompt_logprobs": 0}),
        ("bad_words", {"bad_words": ((1,),)}),
        ("allowed_token_ids", {"allowed_token_ids": (1,)}),
    ],
)
async def test_what_an_older_verifier_would_leave_out_is_refused(field: str, values: dict[str, Any]) -> None:
    engine = FakeEngine(replace(INFO, capabilities=()))
    async with serving(engine) as server, edge_at(server.port) as edge:
        with pytest.raises(InvalidRequest, match=f"{field} is given, but the verifier does not have it") as caught:
            await answer_of(edge.service, wanted(20, sampling=SamplingParams(**values)))
    assert caught.value.param == field
    assert engine.opened == []


async def test_a_verifier_that_leaves_out_what_it_promised_does_not_answer() -> None:
    options = GenerationOptions(verifier_deadline_s=1.0)
    async with serving(FakeEngine()) as server, edge_at(server.port, options=options) as edge:
        with pytest.raises(VerifierUnavailable, match="log-probabilities of 0 of 1 tokens"):
            await answer_of(edge.service, wanted(20, sampling=SamplingParams(num_logprobs=0)))


async def test_answers_of_one_channel_do_not_mix() -> None:
    async with serving(FakeEngine()) as server, edge_at(server.port, TreeDrafts(8, 2)) as edge:
        prompts = [(1000 + i, 7, 9) for i in range(16)]
        answers = await asyncio.gather(*(answer_of(edge.service, wanted(30, prompt)) for prompt in prompts))
    assert answers == [expected_answer(prompt, 30) for prompt in prompts]


@pytest.mark.parametrize("moment", ["first burst", "middle", "before any burst"])
async def test_leaving_ends_the_session_on_both_sides_at_once(moment: str) -> None:
    engine, drafts = FakeEngine(step_s=0.005), TreeDrafts(12, 2)
    async with serving(engine) as server, edge_at(server.port, drafts) as edge:
        neighbour = asyncio.create_task(answer_of(edge.service, wanted(100, (5, 6))))
        await until(lambda: engine.opened)
        async with edge.service.generate(wanted(2000)) as bursts, aclosing(bursts):
            num_wanted = {"first burst": 1, "middle": 12, "before any burst": 0}[moment]
            for _ in range(num_wanted):
                await anext(bursts)
        assert drafts.sessions[1].is_closed
        await until(lambda: engine.closed == [1], timeout_s=0.5)
        assert await neighbour == expected_answer((5, 6), 100)
        await until(lambda: server.service.num_streams == 0)


async def test_cancelling_the_task_of_a_generation_ends_its_session() -> None:
    engine = FakeEngine(step_s=0.005)
    async with serving(engine) as server, edge_at(server.port) as edge:
        task = asyncio.create_task(answer_of(edge.service, wanted(2000)))
        await until(lambda: engine.num_sessions == 1)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        await until(lambda: engine.num_sessions == 0, timeout_s=0.5)


async def test_a_slow_consumer_stops_its_own_drafting_and_nobody_elses() -> None:
    engine, drafts = FakeEngine(), TreeDrafts(4, 1)
    options = replace(QUICK, max_buffered_bursts=4)
    async with serving(engine) as server, edge_at(server.port, drafts, options) as edge:
        async with edge.service.generate(wanted(400)) as slow, aclosing(slow):
            await until(lambda: drafts.sessions[0].num_pauses == 1)
            verdicts_read = edge.counters.num_verdicts
            assert verdicts_read == 4
            assert await answer_of(edge.service, wanted(50, (5, 6))) == expected_answer((5, 6), 50)
            assert drafts.sessions[0].num_resumes == 0
            token_ids = [token_id async for burst in slow for token_id in burst.token_ids]
        assert token_ids == expected_answer(PROMPT, 400)
        session = drafts.sessions[0]
        assert 1 <= session.num_pauses == session.num_resumes


async def test_what_a_verifier_sent_before_it_ended_is_read_although_a_write_has_failed() -> None:
    engine = FakeEngine(patience_s=0.0)
    opening = OpenSession("r1", PROMPT, (), SamplingParams(max_tokens=40), FINGERPRINT)
    nodes = DraftNodes(token_ids=[11], parents=[0], scores=[255])
    async with (
        serving(engine, linger_s=0.0) as server,
        edge_at(server.port) as edge,
        edge.client.open_stream(opening, INFO) as stream,
    ):
        assert isinstance(await stream.read(5.0), SessionOpened)
        await until(lambda: server.service.num_streams == 0)
        stream.send(nodes)
        await until(stream._writer.done)
        token_ids: list[int] = []
        while isinstance(verdict := await stream.read(5.0), Verdict) and not verdict.finish_reason:
            token_ids += verdict.token_ids
    assert isinstance(verdict, Verdict)
    assert [*token_ids, *verdict.token_ids] == expected_answer(PROMPT, 40)


async def test_start_waits_for_a_verifier_that_comes_late() -> None:
    port = free_port()
    edge = Edge(port, NullDraftSource(), QUICK)
    starting = asyncio.create_task(edge.service.start())
    await asyncio.sleep(0.1)
    assert edge.service.info is None
    assert not edge.service.is_ready
    with pytest.raises(VerifierUnavailable, match="has not answered yet"):
        await answer_of(edge.service, wanted(5))
    async with serving(FakeEngine(), port=port):
        assert await starting == INFO
        assert edge.service.info == INFO
        assert edge.service.is_ready
        await edge.client.close()


async def test_a_pause_between_attempts_ends_when_the_verifier_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.verifier_client.Backoff", lambda: Backoff(first_s=60.0, max_s=60.0))
    port = free_port()
    client = VerifierClient(f"127.0.0.1:{port}")
    asking = asyncio.create_task(client.get_server_info(FINGERPRINT, deadline_s=300.0))
    await asyncio.sleep(0.3)
    assert not asking.done()
    async with serving(FakeEngine(), port=port), asyncio.timeout(20):
        assert await asking == INFO
    await client.close()


async def test_start_gives_up_at_the_deadline_and_names_the_address() -> None:
    port = free_port()
    edge = Edge(port, NullDraftSource(), replace(QUICK, verifier_deadline_s=0.3))
    with pytest.raises(VerifierUnavailable, match=f"127.0.0.1:{port} within 0.3 s"):
        await edge.service.start()
    await edge.client.close()


async def test_a_full_verifier_is_reported_at_once_however_busily_drafts_are_sent() -> None:
    engine = FakeEngine(max_sessions=0)
    async with serving(engine) as server:
        for _ in range(20):  # an edge that has been refused sends no drafts before it has a place
            async with edge_at(server.port, TreeDrafts(64, 2, num_messages=64)) as edge:
                with pytest.raises(CapacityExceeded, match="no more fit") as caught:
                    await answer_of(edge.service, wanted(5))
            assert 2.5 <= caught.value.retry_after_s <= 3.0
            assert edge.counters.num_broken == 0


async def test_for_a_moment_a_full_verifier_is_not_asked_again_for_what_it_refused() -> None:
    engine = FakeEngine(max_sessions=0)
    drafts = TreeDrafts()
    async with serving(engine) as server, edge_at(server.port, drafts) as edge:
        with pytest.raises(CapacityExceeded):
            await answer_of(edge.service, wanted(5))
        engine.max_sessions = 1
        with pytest.raises(CapacityExceeded, match="no more fit") as caught:
            await answer_of(edge.service, wanted(5))
        assert 0 < caught.value.retry_after_s < 3.0
        assert len(drafts.sessions) == 1, "nothing is drafted for it"
        assert await answer_of(edge.service, wanted(5, priority=1)) == expected_answer(PROMPT, 5)
        await asyncio.sleep(TRUST_S)
        assert await answer_of(edge.service, wanted(5)) == expected_answer(PROMPT, 5)


async def test_other_tokenizers_and_versions_are_refused_at_start() -> None:
    for info, error, details in (
        (replace(INFO, tokenizer_fingerprint="tokenizer-9"), ModelLoadError, "tokenizer-1.*tokenizer-9"),
        (replace(INFO, protocol_version=2), ProtocolError, "protocol version 2, this edge only 1"),
    ):
        async with serving(FakeEngine(info)) as server:
            edge = Edge(server.port, NullDraftSource(), QUICK)
            with pytest.raises(error, match=details):
                await edge.service.start()
            await edge.client.close()


BAD_REQUESTS = {
    "temperature": (wanted(5, sampling=SamplingParams(temperature=-1)), "temperature", "-1"),
    "prompt id": (wanted(5, (1, VOCAB_SIZE)), None, f"prompt_ids\\[1\\] is {VOCAB_SIZE}"),
    "empty prompt": (wanted(5, ()), "prompt_ids", "at least 1"),
    "too long": (wanted(5, (7,) * 5000), "prompt_ids", "5000 prompt tokens"),
}


@pytest.mark.parametrize(("request_", "param", "details"), BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
async def test_bad_values_come_back_as_invalid_request(
    request_: GenerationRequest, param: str | None, details: str
) -> None:
    async with serving(FakeEngine()) as server, edge_at(server.port, TreeDrafts()) as edge:
        with pytest.raises(InvalidRequest, match=details) as caught:
            await answer_of(edge.service, request_)
    assert caught.value.param == param


async def test_round_trips_are_measured_over_the_way_that_is_there_and_outlive_a_verifier_that_is_gone() -> None:
    engine = FakeEngine()
    async with serving(engine) as server:
        proxy = NetworkProxy(server.port, network_profile("rtt80"))
        port = await proxy.start()
        times_s: list[float] = []
        observer = StreamCounters()
        observer.round_trip = times_s.append  # type: ignore[method-assign]
        client = VerifierClient(f"127.0.0.1:{port}", observer)
        pool = VerifierPool.of(client)
        await pool.start(FINGERPRINT, 5.0)
        pinging = asyncio.create_task(pool.run())
        try:
            await until(lambda: len(times_s) >= 2)
            await proxy.stop()
            await asyncio.sleep(1.2)
            assert not pinging.done()
        finally:
            pinging.cancel()
            await client.close()
            await proxy.stop()
    assert 0.08 <= times_s[-1] < 1.0


@pytest.mark.parametrize("drafts", [None, TreeDrafts(3, 1)], ids=["plain", "drafted"])
async def test_the_verifier_hears_of_every_verdict_soon(
    drafts: TreeDrafts | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[float] = []
    late_s: list[float] = []
    seen = Outbox.seen

    def heard(outbox: Outbox, num_verdicts: int) -> None:
        now_s = asyncio.get_running_loop().time()
        late_s.extend(now_s - sent_s for sent_s in sent[len(late_s) : num_verdicts])
        seen(outbox, num_verdicts)

    def sending(handle: int, verdict: Verdict) -> Verdict:
        sent.append(asyncio.get_running_loop().time())
        return verdict

    monkeypatch.setattr(Outbox, "seen", heard)
    engine = FakeEngine(replace(INFO, capabilities=(*INFO.capabilities, PROGRESS)), step_s=4 * TELL_WITHIN_S)
    engine.tamper = sending
    async with serving(engine) as server, edge_at(server.port, drafts) as edge:
        assert await answer_of(edge.service, wanted(6)) == expected_answer(PROMPT, 6)
    assert engine.opened[0].tells_progress
    assert len(late_s) >= len(sent) - 1, "of the last one nobody needs to hear"
    assert min(late_s) < 2 * TELL_WITHIN_S, "the others may be late on a busy machine"


async def test_an_opening_has_the_shortest_of_the_last_round_trips() -> None:
    engine = FakeEngine(INFO)
    async with serving(engine) as server, edge_at(server.port) as edge:
        await answer_of(edge.service, wanted(2))
        for _ in range(3):
            assert await edge.client.ping() is not None
        await answer_of(edge.service, wanted(2))
        least_s = edge.client.least_round_trip_s
    assert least_s is not None and least_s <= edge.client.round_trip_s
    assert engine.opened[1].round_trip_s == pytest.approx(least_s, abs=1e-6)


async def test_an_edge_tells_nothing_to_a_verifier_that_does_not_know_the_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[int] = []
    monkeypatch.setattr(Outbox, "seen", lambda outbox, num_verdicts: told.append(num_verdicts))
    capabilities = tuple(word for word in INFO.capabilities if word != PROGRESS)
    engine = FakeEngine(replace(INFO, capabilities=capabilities), step_s=2 * TELL_WITHIN_S)
    async with serving(engine) as server, edge_at(server.port) as edge:
        assert await answer_of(edge.service, wanted(4)) == expected_answer(PROMPT, 4)
    assert not engine.opened[0].tells_progress and told == []
