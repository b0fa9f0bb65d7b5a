"""The engine thread on a real event loop: what it promises its sinks, its callers and, through gRPC, its clients."""

import asyncio
import threading

import grpc
import pytest
from engine_thread import (
    OTHER_PROMPT,
    PROMPT,
    TIMEOUT_S,
    Device,
    Sink,
    Snapshot,
    Steps,
    Target,
    look_into,
    opening,
    running,
)
from fake_target import VOCAB_SIZE, answer
from fakes import serving, until
from grpc_health.v1 import health_pb2, health_pb2_grpc

from specedge.errors import (
    CapacityExceeded,
    EngineDead,
    InvalidRequest,
    ProtocolError,
    VerifierUnavailable,
)
from specedge.sampling import SamplingParams
from specedge.verification.v1 import verification_pb2_grpc as pb_grpc
from specedge.wire import codec
from specedge.wire.messages import DraftNodes, OpenSession, SessionOpened, Verdict
from specedge_verifier import engine as engine_module
from specedge_verifier.engine import MAX_QUEUED_DRAFTS
from specedge_verifier.grpc_server import SERVICE_NAME


async def test_sinks_are_told_in_order_on_the_loop_thread_and_the_text_is_the_targets() -> None:
    async with running(Target()) as engine:
        sinks = {prompt: Sink() for prompt in (PROMPT, OTHER_PROMPT)}
        for prompt, sink in sinks.items():
            engine.open(opening(30, prompt), sink)
        for prompt, sink in sinks.items():
            assert await sink.answer() == answer(prompt, 30)
            first, *verdicts = sink.events
            assert isinstance(first, SessionOpened)
            position = len(prompt)
            for verdict in verdicts:
                assert isinstance(verdict, Verdict) and verdict.first_position == position
                position += len(verdict.token_ids)
            assert sink.threads == {threading.get_ident()}
        assert engine.num_sessions == 0
        assert await look_into(engine) == Snapshot(num_sessions=0, num_held=0)


async def test_a_failing_model_fails_every_session_and_every_later_one() -> None:
    target = Target(holds_at=1, fails_at=3)
    async with running(target) as engine:
        sinks = [Sink(), Sink()]
        handles = [engine.open(opening(200), sink) for sink in sinks]
        target.release()
        for sink in sinks:
            end = await sink.end()
            assert isinstance(end, EngineDead) and "the device was lost" in str(end)
            assert sink.tokens == answer(PROMPT, 200)[: len(sink.tokens)], "what came before the failure is right"
        assert not engine.is_healthy
        assert engine.num_sessions == 0
        with pytest.raises(EngineDead, match="the device was lost"):
            engine.open(opening(5), Sink())
        for handle in handles:
            engine.draft(handle, DraftNodes([1], [~5], [-0.1]))
            engine.close(handle)


async def test_a_failing_model_takes_the_server_out_of_service() -> None:
    target = Target(holds_at=1, fails_at=3)
    async with (
        running(target) as engine,
        serving(engine) as server,  # type: ignore[arg-type]
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest(service=name)) for name in ("", SERVICE_NAME)]
        for watch in watches:
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        stub = pb_grpc.VerificationServiceStub(channel)
        calls = [stub.Generate(), stub.Generate()]
        await calls[0].write(codec.encode_open(opening(200)))
        await target.held()
        await calls[1].write(codec.encode_open(opening(200)))
        await until(lambda: engine.num_sessions == 2, TIMEOUT_S)
        target.release()
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                while await call.read() is not grpc.aio.EOF:
                    pass
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert "the device was lost" in (caught.value.details() or "")
        async with asyncio.timeout(TIMEOUT_S):
            for watch in watches:
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
                watch.cancel()
        late = stub.Generate()
        await late.write(codec.encode_open(opening(5)))
        assert await late.code() == grpc.StatusCode.UNAVAILABLE
        assert target.num_forwards == 3


async def test_closing_frees_the_blocks_before_the_next_step() -> None:
    target = Target(holds_at=25)
    async with running(target) as engine:
        leaving, staying = Sink(), Sink()
        handle = engine.open(opening(200), leaving)
        engine.open(opening(100, OTHER_PROMPT), staying)
        await target.held()
        num_events = len(leaving.events)
        counts: list[int] = []
        engine.close(handle)
        engine.close(handle)
        engine.inspect(lambda core: counts.append(target.num_forwards))
        look = look_into(engine)
        target.release()
        seen = await look
        assert counts == [25], "the step under way must be the session's last"
        assert seen.num_sessions == 1
        assert 0 < seen.num_held <= -(-(len(OTHER_PROMPT) + 100 + 1) // 4)
        assert await staying.answer() == answer(OTHER_PROMPT, 100)
        assert len(leaving.events) == num_events, "a closed session is told nothing more"
        assert await look_into(engine) == Snapshot(num_sessions=0, num_held=0)


async def test_commands_are_carried_out_while_the_device_computes() -> None:
    device, right = Device(), answer(PROMPT, 60)
    async with running(device, expected_step_s=TIMEOUT_S) as engine:
        leaving, staying = Sink(), Sink()
        handle = engine.open(opening(60, system="specedge", drafter_id="d"), staying)
        leaving_handle = engine.open(opening(60, OTHER_PROMPT), leaving)
        await until(lambda: device.num_forwards == 1, TIMEOUT_S)
        during = await look_into(engine)
        assert (during.num_sessions, device.num_forwards) == (2, 1)

        engine.draft(handle, DraftNodes(right[:3], [~5, 0, 1], [-0.1] * 3))
        engine.close(leaving_handle)
        trees: list[int] = []
        engine.inspect(lambda core: trees.extend(s.trie.num_live for s in core.scheduler.running))
        after = await look_into(engine)
        assert device.num_forwards == 1, "the first step has not ended"
        assert sorted(trees) == [0, 3], "the draft is there before the step has ended"
        assert after == Snapshot(num_sessions=1, num_held=during.num_held), "a step in flight needs its blocks"

        device.release()
        assert await staying.answer() == right
        assert leaving.events == []
        assert await look_into(engine) == Snapshot(num_sessions=0, num_held=0)


async def test_sessions_beyond_the_bound_are_refused_and_there_is_room_again_after_one_ends() -> None:
    target = Target(holds_at=1)
    async with running(target, max_sessions=3, max_batch_size=1) as engine:
        sinks = [Sink() for _ in range(3)]
        handles = [engine.open(opening(100), sink) for sink in sinks]
        await target.held()
        with pytest.raises(CapacityExceeded, match="3 sessions are running or waiting") as caught:
            engine.open(opening(5), Sink())
        assert caught.value.retry_after_s > 0
        engine.close(handles[1])
        late = Sink()
        engine.open(opening(40, OTHER_PROMPT), late)
        target.release()
        assert await sinks[0].answer() == await sinks[2].answer() == answer(PROMPT, 100)
        assert await late.answer() == answer(OTHER_PROMPT, 40)
        assert sinks[1].events == []


async def test_a_slow_reader_pauses_its_own_session_only() -> None:
    async with running(Target()) as engine:
        slow, quick = Sink(is_congested=True), Sink()
        engine.open(opening(50), slow)
        engine.open(opening(50, OTHER_PROMPT), quick)
        assert await quick.answer() == answer(OTHER_PROMPT, 50)
        assert (await look_into(engine)).num_sessions == 1
        assert slow.events == []
        slow.is_congested = False
        assert slow.on_congestion is not None
        slow.on_congestion(False)
        assert await slow.answer() == answer(PROMPT, 50)


async def test_draining_refuses_new_sessions_and_finishes_running_ones() -> None:
    target = Target(holds_at=1)
    async with running(target) as engine:
        sink = Sink()
        engine.open(opening(50), sink)
        await target.held()
        engine.drain()
        with pytest.raises(VerifierUnavailable, match="shutting down"):
            engine.open(opening(5), Sink())
        target.release()
        assert await sink.answer() == answer(PROMPT, 50)
        assert engine.is_healthy


async def test_drafts_shorten_the_answer_but_never_change_it() -> None:
    target, steps = Target(holds_at=1), Steps()
    right = answer(PROMPT, 40)
    async with running(target, steps=steps) as engine:
        engine.open(opening(20, OTHER_PROMPT), other := Sink())
        await target.held()
        handle = engine.open(opening(40, system="specedge", drafter_id="d"), sink := Sink())
        tokens = [*right[:8], *((token + 1) % VOCAB_SIZE for token in right[:8])]
        parents = [~5, *range(7), ~5, *range(7)]
        engine.draft(handle, DraftNodes(tokens, parents, [-0.1] * 8 + [-0.2] * 8))
        target.release()
        assert await sink.answer() == right
        assert await other.answer() == answer(OTHER_PROMPT, 20)
        assert sum(report.num_accepted for report in steps.reports) > 0
        engine.draft(handle, DraftNodes([1], [0], [-0.1]))
        assert await look_into(engine) == Snapshot(num_sessions=0, num_held=0)


async def test_a_draft_that_breaks_the_rules_ends_its_session_alone() -> None:
    async with running(Target()) as engine:
        bad, good = Sink(), Sink()
        handle = engine.open(opening(200, system="specedge", drafter_id="d"), bad)
        engine.open(opening(60, OTHER_PROMPT), good)
        engine.draft(handle, DraftNodes([1], [~900], [-0.1]))
        end = await bad.end()
        assert isinstance(end, ProtocolError) and "900" in str(end)
        assert await good.answer() == answer(OTHER_PROMPT, 60)
        assert await look_into(engine) == Snapshot(num_sessions=0, num_held=0)


async def test_unread_drafts_are_bounded() -> None:
    target = Target(holds_at=1)
    async with running(target) as engine:
        flooding, neighbour = Sink(), Sink()
        engine.open(opening(60, OTHER_PROMPT), neighbour)
        handle = engine.open(opening(60, system="specedge", drafter_id="d"), flooding)
        await target.held()
        nodes = DraftNodes([1], [~5], [-0.1])
        for _ in range(MAX_QUEUED_DRAFTS):
            engine.draft(handle, nodes)
        with pytest.raises(ProtocolError, match=f"{MAX_QUEUED_DRAFTS} draft messages"):
            engine.draft(handle, nodes)
        target.release()
        assert await neighbour.answer() == answer(OTHER_PROMPT, 60)
        assert await flooding.answer() == answer(PROMPT, 60)


@pytest.mark.parametrize(
    ("message", "param", "details"),
    [
        (opening(251), "max_tokens", "6 prompt tokens and max_tokens 251 exceed the context of 256"),
        (opening(5, ()), "prompt_ids", "the prompt is empty"),
        (opening(5, (1, 5)), None, r"prompt_ids\[1\] is 5, outside the vocabulary of 5"),
        (
            OpenSession("r", PROMPT, (1, 2), SamplingParams(max_tokens=2), "f"),
            "committed_ids",
            "2 committed tokens leave nothing to generate: max_tokens is 2",
        ),
        (
            OpenSession("r", (1,) * 200, (), SamplingParams(num_prompt_logprobs=20), "f"),
            "prompt_logprobs",
            "prompt_logprobs is 20 for a prompt of 200 tokens; together they may ask for at most 4000",
        ),
    ],
)
async def test_what_could_never_be_served_is_refused_at_once(
    message: OpenSession, param: str | None, details: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "MAX_PROMPT_LOGPROBS", 4000)
    async with running(Target()) as engine:
        with pytest.raises(InvalidRequest, match=details) as caught:
            engine.open(message, Sink())
        assert caught.value.param == param
        assert engine.num_sessions == 0
