"""Edges and verifiers of different versions, over real sockets: earlier ones lack fields, later ones have more."""

import asyncio

import grpc
import pytest
from edge_harness import PROMPT, answer_of, edge_at, wanted
from fakes import FINGERPRINT, INFO, VOCAB_SIZE, FakeEngine, TreeDrafts, expected_answer, serving, until
from pool_harness import PROMPTS, edge_of
from spoken_protocol import SERVICE, Language, frozen, future, num_unknown, right_drafts, speaking

from specedge.wire.messages import Verdict

OTHERS = {**frozen(), "later": future()}
others = pytest.mark.parametrize("other", OTHERS)


@others
async def test_an_edge_of_another_version_gets_its_answer_from_this_verifier(other: str) -> None:
    speak, engine = Language(OTHERS[other]), FakeEngine(patience_s=5.0)

    def wait_no_longer(_: int, verdict: Verdict) -> Verdict:
        engine.patience_s = 0.0
        return verdict

    engine.tamper = wait_no_longer  # there are drafts for the first verdict only
    async with serving(engine) as server, grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        opening = speak.OpenSession(
            protocol_version=1,
            request_id="r",
            prompt_ids=PROMPT,
            sampling=speak.SamplingParams(max_tokens=40),
            tokenizer_fingerprint=FINGERPRINT,
        )
        call = speak.multicallable(channel)()
        await call.write(speak.complete(speak.GenerateRequest(open=opening)))
        num_right, tokens, num_verdicts = 6, [*PROMPT], 0
        await call.write(right_drafts(speak, tokens, num_right))
        response = await call.read()
        assert response.WhichOneof("message") == "opened" and response.opened.max_live_nodes == INFO.max_live_nodes
        while (response := await call.read()) is not grpc.aio.EOF:
            assert response.WhichOneof("message") == "verdict" and not num_unknown(response)
            assert response.verdict.first_position == len(tokens)
            assert response.verdict.num_accepted == (0 if num_verdicts else num_right)
            tokens += response.verdict.token_ids
            num_verdicts += 1
            if response.verdict.finish_reason:
                await call.done_writing()
        assert tokens == [*PROMPT, *expected_answer(PROMPT, 40)]
        assert await call.code() is grpc.StatusCode.OK


@others
async def test_an_edge_of_another_version_learns_what_this_verifier_serves(other: str) -> None:
    speak = Language(OTHERS[other])
    async with serving(FakeEngine()) as server, grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        ask = channel.unary_unary(
            f"/{SERVICE}/GetServerInfo",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=speak.GetServerInfoResponse.FromString,
        )
        info = await ask(speak.complete(speak.GetServerInfoRequest(protocol_version=1)))
    assert (info.protocol_version, info.vocab_size, info.max_len) == (1, VOCAB_SIZE, INFO.max_len)
    assert info.tokenizer_fingerprint == FINGERPRINT


async def test_an_edge_that_does_not_know_the_word_draining_is_never_sent_it_and_may_finish() -> None:
    speak, engine = Language(frozen()["1"]), FakeEngine(step_s=0.01, patience_s=0.0)
    async with serving(engine) as server, grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        opening = speak.OpenSession(
            protocol_version=1,
            prompt_ids=PROMPT,
            sampling=speak.SamplingParams(max_tokens=40),
            tokenizer_fingerprint=FINGERPRINT,
        )
        call, tokens = speak.multicallable(channel)(), list[int]()
        await call.write(speak.GenerateRequest(open=opening))
        assert (await call.read()).WhichOneof("message") == "opened"
        draining = asyncio.create_task(server.drain(30.0))
        while (response := await call.read()) is not grpc.aio.EOF:
            assert response.WhichOneof("message") == "verdict", "it could not read anything else"
            tokens += response.verdict.token_ids
            if response.verdict.finish_reason:
                await call.done_writing()
        assert tokens == expected_answer(PROMPT, 40)
        async with asyncio.timeout(10):
            await draining


@others
async def test_this_edge_gets_its_answer_from_a_verifier_of_another_version(other: str) -> None:
    drafts = TreeDrafts(12, 2)
    async with speaking(Language(OTHERS[other])) as verifier, edge_at(verifier.port, drafts) as edge:
        assert await answer_of(edge.service, wanted(40)) == expected_answer(PROMPT, 40)
        assert edge.counters.num_broken == 0
    assert verifier.num_drafts > 0
    # What is new in this edge's messages is there, and is passed over.
    assert (verifier.num_unknown > 0) is (other != "later")


@others
async def test_sessions_move_between_verifiers_of_both_versions_in_an_upgrade_and_in_a_rollback(other: str) -> None:
    engine = FakeEngine(step_s=0.02)
    async with (
        speaking(Language(OTHERS[other]), step_s=0.02) as their,
        serving(engine) as own,
        edge_of([their.port, own.port]) as edge,
    ):
        await until(lambda: edge.state(their.port) == edge.state(own.port) == "good")
        asking = [asyncio.create_task(answer_of(edge.service, wanted(120, prompt))) for prompt in PROMPTS]
        await until(lambda: their.num_streams + engine.num_sessions == len(PROMPTS))
        assert 0 < their.num_streams < len(PROMPTS), "two random choices use both"
        if other == "later":
            async with asyncio.timeout(10):
                await own.drain(30.0)
            await until(lambda: their.num_streams == len(PROMPTS))
        else:
            await their.drain()
            await until(lambda: engine.num_sessions == len(PROMPTS))
            assert their.num_streams == 0
        async with asyncio.timeout(20):
            assert await asyncio.gather(*asking) == [expected_answer(prompt, 120) for prompt in PROMPTS]
        assert edge.counters.num_given_up == 0 and edge.counters.num_failed_over > 0
