"""Answers survive whatever happens to stream and verifier, over real sockets."""

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest
from edge_harness import PROMPT, QUICK, Edge, answer_of, edge_at, wanted
from fakes import VOCAB_SIZE, FakeEngine, TreeDrafts, expected_answer, serving, until
from tcp_proxy import TcpProxy

from edge_agent.draft_source import DraftSource, NullDraftSource, OnNodes
from specedge.drafting.draft_session import DraftRequest
from specedge.errors import (
    SpecEdgeError,
    VerifierUnavailable,
)
from specedge.wire.messages import DraftNodes, Verdict


@pytest.mark.parametrize("drafts", [NullDraftSource(), TreeDrafts(12, 2)], ids=["plain", "drafted"])
async def test_an_answer_goes_on_identically_over_broken_connections(drafts: DraftSource) -> None:
    engine = FakeEngine(step_s=0.002)
    async with serving(engine) as server:
        proxy = TcpProxy(server.port)
        await proxy.start()
        async with edge_at(proxy.port, drafts) as edge:
            token_ids: list[int] = []
            async with edge.service.generate(wanted(90)) as bursts, aclosing(bursts):
                async for burst in bursts:
                    if len(token_ids) // 30 != (len(token_ids) + len(burst.token_ids)) // 30:
                        proxy.cut()
                    token_ids += burst.token_ids
            assert token_ids == expected_answer(PROMPT, 90)
            assert edge.counters.num_broken >= 2
            assert edge.counters.num_opened == 1 + edge.counters.num_broken
        await proxy.close()
    assert len(engine.opened) == edge.counters.num_opened
    for opening in engine.opened:
        assert list(opening.committed_ids) == token_ids[: len(opening.committed_ids)]
    assert [len(opening.committed_ids) for opening in engine.opened[:2]] != [0, 0]
    await until(lambda: engine.num_sessions == 0)


async def test_drafts_are_numbered_again_after_a_broken_connection() -> None:
    engine, drafts = FakeEngine(patience_s=5.0, step_s=0.002), TreeDrafts(12, 2)
    async with serving(engine) as server:
        proxy = TcpProxy(server.port)
        await proxy.start()
        async with edge_at(proxy.port, drafts) as edge:
            bursts = []
            async with edge.service.generate(wanted(60)) as stream, aclosing(stream):
                async for burst in stream:
                    bursts.append(burst)
                    if len(bursts) == 10:
                        proxy.cut()
                    if drafts.sessions[0].epoch == 1:
                        drafts.sessions[0].on_nodes(0, DraftNodes([11], [~2], [0.0]))  # late news of the old stream
        await proxy.close()
    assert edge.counters.num_broken == 1
    assert drafts.sessions[0].epoch == 1
    assert [burst.num_accepted for burst in bursts[-5:-1]] == [2] * 4, "drafts must fit again on the new stream"


async def test_an_answer_goes_on_when_the_verifier_is_restarted_on_its_port() -> None:
    first, second = FakeEngine(step_s=0.005), FakeEngine()
    token_ids: list[int] = []
    async with serving(first) as server:
        port = server.port
        edge = Edge(port, TreeDrafts(12, 2), QUICK)
        await edge.service.start()
        generation = edge.service.generate(wanted(60))
        bursts = await generation.__aenter__()
        token_ids += (await anext(bursts)).token_ids
    await until(lambda: not edge.service.is_ready)
    async with serving(second, port=port):
        async for burst in bursts:
            token_ids += burst.token_ids
        assert edge.service.is_ready
        await generation.__aexit__(None, None, None)
        await edge.client.close()
    assert token_ids == expected_answer(PROMPT, 60)
    assert len(second.opened) == 1
    assert len(second.opened[0].committed_ids) > 0


async def test_an_answer_whose_verifier_stays_away_fails_at_the_deadline() -> None:
    engine = FakeEngine(step_s=0.005)
    async with serving(engine) as server:
        proxy = TcpProxy(server.port)
        await proxy.start()
        async with edge_at(proxy.port, options=replace(QUICK, verifier_deadline_s=0.6)) as edge:
            loop = asyncio.get_running_loop()
            token_ids: list[int] = []
            with pytest.raises(VerifierUnavailable, match=r"within 0.6 s") as caught:
                async with edge.service.generate(wanted(2000)) as bursts, aclosing(bursts):
                    token_ids += (await anext(bursts)).token_ids
                    await proxy.close()
                    left_at = loop.time()
                    async for burst in bursts:
                        token_ids += burst.token_ids
            assert 0.2 < loop.time() - left_at < 3.0
            assert caught.value.retry_after_s > 0
            assert token_ids == expected_answer(PROMPT, 2000)[: len(token_ids)]
            assert edge.counters.num_given_up == 1
            with pytest.raises(VerifierUnavailable):
                await answer_of(edge.service, wanted(5))


async def test_a_silent_verifier_counts_as_broken() -> None:
    engine = FakeEngine()
    engine.tamper = lambda handle, verdict: None if handle == 0 and verdict.first_position > 10 else verdict
    async with serving(engine) as server, edge_at(server.port, options=replace(QUICK, stall_timeout_s=0.4)) as edge:
        assert await answer_of(edge.service, wanted(30)) == expected_answer(PROMPT, 30)
    assert len(engine.opened[1].committed_ids) == 8
    assert edge.counters.num_broken == 1


def skip_a_token(handle: int, verdict: Verdict) -> Verdict:
    return verdict._replace(first_position=verdict.first_position + (handle == 0 and verdict.first_position > 10))


def leave_the_vocabulary(handle: int, verdict: Verdict) -> Verdict:
    is_bad = handle == 0 and verdict.first_position > 10
    return verdict._replace(token_ids=(VOCAB_SIZE,)) if is_bad else verdict


@pytest.mark.parametrize("tamper", [skip_a_token, leave_the_vocabulary])
async def test_a_verdict_that_cannot_be_is_not_taken_over(tamper: object) -> None:
    engine = FakeEngine()
    engine.tamper = tamper
    async with serving(engine) as server, edge_at(server.port) as edge:
        assert await answer_of(edge.service, wanted(30)) == expected_answer(PROMPT, 30)
    assert edge.counters.num_broken == 1


async def test_an_answer_that_ended_while_drafts_were_sent_is_read_to_its_end() -> None:
    engine, options = FakeEngine(patience_s=0), replace(QUICK, max_buffered_bursts=1)
    async with serving(engine) as server, edge_at(server.port, TreeDrafts(64, 0, num_messages=64), options) as edge:
        token_ids: list[int] = []
        async with edge.service.generate(wanted(20)) as bursts, aclosing(bursts):
            async for burst in bursts:
                token_ids += burst.token_ids
                await asyncio.sleep(0.005)
    assert token_ids == expected_answer(PROMPT, 20)
    assert edge.counters.num_broken == 0, "a write to the ended stream must not hide what it still has to say"


async def test_a_full_verifier_is_asked_again_when_an_answer_is_resumed() -> None:
    engine = FakeEngine(step_s=0.002)
    async with serving(engine) as server:
        proxy = TcpProxy(server.port)
        await proxy.start()
        async with edge_at(proxy.port) as edge:
            token_ids: list[int] = []
            async with edge.service.generate(wanted(60)) as bursts, aclosing(bursts):
                token_ids += (await anext(bursts)).token_ids
                engine.max_sessions = 0
                proxy.cut()
                await until(lambda: edge.counters.num_broken >= 2)
                engine.max_sessions = 1
                async for burst in bursts:
                    token_ids += burst.token_ids
        await proxy.close()
    assert token_ids == expected_answer(PROMPT, 60)


class RudeDrafts(TreeDrafts):
    """Drafts whose third message hangs on a committed position that does not exist."""

    def open(self, request: DraftRequest, on_nodes: OnNodes) -> object:
        num_calls = 0

        def spoil(epoch: int, nodes: DraftNodes) -> None:
            nonlocal num_calls
            num_calls += 1
            on_nodes(epoch, replace(nodes, parents=[~100_000] * len(nodes.parents)) if num_calls == 3 else nodes)

        return super().open(request, spoil)


async def test_an_answer_whose_drafts_are_refused_goes_on_without_drafts() -> None:
    engine, drafts = FakeEngine(), RudeDrafts(8, 2)
    async with serving(engine) as server, edge_at(server.port, drafts) as edge:
        assert await answer_of(edge.service, wanted(40)) == expected_answer(PROMPT, 40)
    assert [opening.system for opening in engine.opened] == ["specedge", "autoregressive"]
    assert drafts.sessions[0].is_closed


async def test_a_dead_engine_or_a_closed_channel_does_not_leave_the_consumer_waiting() -> None:
    engine = FakeEngine(step_s=0.005)
    options = replace(QUICK, verifier_deadline_s=0.6)
    for end in (lambda edge: engine.die(), lambda edge: asyncio.create_task(edge.client.close())):
        engine.is_healthy = True
        async with serving(engine) as server, edge_at(server.port, options=options) as edge:
            with pytest.raises(SpecEdgeError):
                async with edge.service.generate(wanted(2000)) as bursts, aclosing(bursts):
                    await anext(bursts)
                    ending = end(edge)
                    async for _ in bursts:
                        pass
            if ending is not None:
                await ending
