"""The gRPC service over real sockets, driven by a bare client: statuses, bad input, neighbours, ends, drain."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc
import pytest
from fakes import FINGERPRINT, INFO, VOCAB_SIZE, FakeEngine, expected_answer, serving, until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from specedge.errors import InvalidRequest
from specedge.sampling import SamplingParams
from specedge.verification.v1 import verification_pb2 as pb
from specedge.verification.v1 import verification_pb2_grpc as pb_grpc
from specedge.wire import codec
from specedge.wire.channel import MAX_MESSAGE_BYTES
from specedge.wire.draft_codec import DraftEncoder
from specedge.wire.messages import DraftNodes, OpenSession, Verdict
from specedge_verifier.grpc_server import SERVICE_NAME, ServerOptions, VerifierServer

PROMPT = (70_000, 80_000, 90_000)
METHOD = f"/{SERVICE_NAME}/Generate"


@contextlib.asynccontextmanager
async def channel_to(server: VerifierServer) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


def opening(**changes: object) -> OpenSession:
    message = OpenSession("r1", PROMPT, (), SamplingParams(max_tokens=20), FINGERPRINT, system="autoregressive")
    return replace(message, **changes)


def wire_opening(**changes: object) -> pb.GenerateRequest:
    """An OpenSession with protobuf fields changed to what no encoder would write."""
    request = codec.encode_open(opening(system="specedge"))
    request.open.MergeFrom(pb.OpenSession(**changes))
    return request


def drafts(token_ids: list[int], deltas: list[int], num_verdicts_seen: int = 0, anchor: int = 2) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        draft_nodes=pb.DraftNodes(
            token_ids=token_ids,
            parent_deltas=deltas,
            scores=bytes(len(token_ids)),
            anchor=anchor,
            num_verdicts_seen=num_verdicts_seen,
        )
    )


async def tokens_of(call: grpc.aio.StreamStreamCall, closes: bool = True) -> list[int]:
    """Reads a stream to its end, closing the client's side after the last verdict, and returns its tokens."""
    token_ids: list[int] = []
    while (response := await call.read()) is not grpc.aio.EOF:
        message = codec.decode_response(response, VOCAB_SIZE)
        if isinstance(message, Verdict):
            token_ids += message.token_ids
            if message.finish_reason and closes:
                await call.done_writing()
    return token_ids


async def error_of(call: grpc.aio.StreamStreamCall) -> grpc.aio.AioRpcError:
    """Reads a stream until it fails and returns how."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await tokens_of(call)
    return caught.value


def metadata_of(error: grpc.aio.AioRpcError) -> dict[str, str]:
    return dict(error.trailing_metadata() or ())


async def test_a_session_ends_with_ok_after_its_last_verdict_and_leaves_nothing_behind() -> None:
    engine = FakeEngine()
    async with serving(engine) as server, channel_to(server) as channel:
        call = pb_grpc.VerificationServiceStub(channel).Generate()
        await call.write(codec.encode_open(opening()))
        assert await tokens_of(call) == expected_answer(PROMPT, 20)
        assert await call.code() == grpc.StatusCode.OK
        assert engine.num_sessions == 0
        await until(lambda: server.service.num_streams == 0)


async def test_drafts_reach_the_engine_and_are_verified() -> None:
    engine = FakeEngine(patience_s=5.0)
    answer = expected_answer(PROMPT, 20)
    async with serving(engine) as server, channel_to(server) as channel:
        call = pb_grpc.VerificationServiceStub(channel).Generate()
        await call.write(codec.encode_open(opening(system="specedge")))
        for request in DraftEncoder().encode(DraftNodes(answer[:19], [~2, *range(18)], [-0.1] * 19)):
            await call.write(request)
        assert await tokens_of(call) == answer
    assert engine.num_nodes_verified == 19


BAD_STREAMS = {
    "drafts first": ([drafts([5], [0])], "first message of a stream must be OpenSession, not draft_nodes"),
    "empty first message": ([pb.GenerateRequest()], "not an empty message"),
    "opened twice": ([wire_opening(), wire_opening()], "only DraftNodes may follow, not open"),
    "unknown parent": ([wire_opening(), drafts([5, 6], [0, 2])], "node 1 names a parent 2 numbers below it"),
    "anchor beyond the frontier": ([wire_opening(), drafts([5], [0], anchor=900)], "900"),
    "future verdict": ([wire_opening(), drafts([5], [0], 7)], "num_verdicts_seen is 7, but only 0 verdicts"),
    "10,000 nodes": (
        [wire_opening(), drafts([5] * 10_000, [0] * 10_000)],
        "10000 draft nodes in one message, at most 512",
    ),
    "token outside": ([wire_opening(), drafts([5, VOCAB_SIZE], [0, 0])], f"token_ids[1] is {VOCAB_SIZE}"),
    "array lengths": ([wire_opening(), drafts([5, 6], [0])], "2 token_ids, 1 parent_deltas, 2 scores"),
    "other version": ([wire_opening(protocol_version=9)], "protocol version 9 is not served, only 1"),
    "unknown system": ([wire_opening(system=77)], "system 77 is not one of"),
    "bias lengths": (
        [wire_opening(sampling=pb.SamplingParams(logit_bias_ids=[1, 2], logit_bias_values=[1.0]))],
        "logit_bias_ids has 2 entries but logit_bias_values has 1",
    ),
}


@pytest.mark.parametrize(("requests", "details"), BAD_STREAMS.values(), ids=BAD_STREAMS.keys())
async def test_a_malformed_stream_ends_alone_with_invalid_argument(
    requests: list[pb.GenerateRequest], details: str
) -> None:
    engine = FakeEngine(patience_s=0.2)
    async with serving(engine) as server, channel_to(server) as channel:
        stub = pb_grpc.VerificationServiceStub(channel)
        neighbour, call = stub.Generate(), stub.Generate()
        await neighbour.write(codec.encode_open(opening()))
        for request in requests:
            await call.write(request)
        error = await error_of(call)
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert details in error.details()
        assert metadata_of(error)["specedge-error"] == "protocol"
        assert await tokens_of(neighbour) == expected_answer(PROMPT, 20)
        await until(lambda: engine.num_sessions == 0)


BAD_VALUES = {
    "empty prompt": (opening(prompt_ids=()), "prompt_ids", "at least 1"),
    "prompt id": (opening(prompt_ids=(1, VOCAB_SIZE)), None, f"prompt_ids[1] is {VOCAB_SIZE}"),
    "committed id": (opening(committed_ids=(VOCAB_SIZE + 5,)), None, f"committed_ids[0] is {VOCAB_SIZE + 5}"),
    "temperature": (opening(sampling=SamplingParams(temperature=-0.5)), "temperature", "-0.5"),
    "NaN": (opening(sampling=SamplingParams(temperature=float("nan"))), "temperature", "nan"),
    "top_p": (opening(sampling=SamplingParams(top_p=1.5)), "top_p", "1.5"),
    "too long": (opening(prompt_ids=(7,) * 5000), "prompt_ids", "5000 prompt tokens"),
    "long name": (opening(request_id="x" * 300), "request_id", "300 characters"),
}


@pytest.mark.parametrize(("message", "param", "details"), BAD_VALUES.values(), ids=BAD_VALUES.keys())
async def test_a_bad_value_is_refused_with_its_name_and_limit(
    message: OpenSession, param: str | None, details: str
) -> None:
    async with serving(FakeEngine()) as server, channel_to(server) as channel:
        call = pb_grpc.VerificationServiceStub(channel).Generate()
        await call.write(codec.encode_open(message))
        error = await error_of(call)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert details in error.details()
    assert metadata_of(error).get("specedge-param") == param


@pytest.mark.parametrize("at_start", [True, False], ids=["first", "later"])
@pytest.mark.parametrize(
    "raw", [b"\xff" * 40, codec.encode_open(opening()).SerializeToString()[:-3]], ids=["random", "truncated"]
)
async def test_bytes_that_are_no_message_end_that_stream_alone(raw: bytes, at_start: bool) -> None:
    engine = FakeEngine(patience_s=0.5)
    async with serving(engine) as server, channel_to(server) as channel:
        neighbour = pb_grpc.VerificationServiceStub(channel).Generate()
        await neighbour.write(codec.encode_open(opening()))
        call = channel.stream_stream(METHOD)()
        if not at_start:
            await call.write(codec.encode_open(opening(system="specedge")).SerializeToString())
        await call.write(raw)
        with pytest.raises(grpc.aio.AioRpcError, match="cannot be parsed as GenerateRequest") as caught:
            while await call.read() is not grpc.aio.EOF:
                pass
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert await tokens_of(neighbour) == expected_answer(PROMPT, 20)
        await until(lambda: engine.num_sessions == 0)


async def test_a_message_beyond_the_cap_is_refused() -> None:
    async with serving(FakeEngine()) as server, channel_to(server) as channel:
        call = channel.stream_stream(METHOD)()
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call.write(bytes(MAX_MESSAGE_BYTES + 1))
        assert await call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert str(MAX_MESSAGE_BYTES) in await call.details()


async def test_a_silent_stream_ends_after_the_open_timeout() -> None:
    async with serving(FakeEngine(), open_timeout_s=0.05) as server, channel_to(server) as channel:
        call = pb_grpc.VerificationServiceStub(channel).Generate()
        error = await error_of(call)
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert "no OpenSession arrived within 0.05 s" in error.details()
        await until(lambda: server.service.num_streams == 0)


async def test_another_tokenizer_is_refused_with_both_fingerprints() -> None:
    async with serving(FakeEngine()) as server, channel_to(server) as channel:
        call = pb_grpc.VerificationServiceStub(channel).Generate()
        await call.write(codec.encode_open(opening(tokenizer_fingerprint="tokenizer-2")))
        error = await error_of(call)
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "tokenizer-1" in error.details()
    assert "tokenizer-2" in error.details()


async def test_a_full_queue_says_when_to_come_back() -> None:
    async with serving(FakeEngine(max_sessions=0)) as server, channel_to(server) as channel:
        call = pb_grpc.VerificationServiceStub(channel).Generate()
        await call.write(codec.encode_open(opening()))
        error = await error_of(call)
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert metadata_of(error)["retry-after-ms"] == "2500"


async def test_nodes_for_a_finished_session_are_ignored() -> None:
    engine = FakeEngine()
    async with serving(engine) as server, channel_to(server) as channel:
        call = pb_grpc.VerificationServiceStub(channel).Generate()
        await call.write(codec.encode_open(opening(system="specedge")))
        await until(lambda: engine.closed == [0])
        await call.write(drafts([11], [0]))
        await until(lambda: engine.num_nodes_received == 1)
        assert await tokens_of(call) == expected_answer(PROMPT, 20)
        assert await call.code() == grpc.StatusCode.OK


async def test_a_client_that_does_not_close_its_side_gets_ok_after_a_while() -> None:
    async with serving(FakeEngine(), linger_s=0.05) as server, channel_to(server) as channel:
        call = pb_grpc.VerificationServiceStub(channel).Generate()
        await call.write(codec.encode_open(opening()))
        assert await tokens_of(call, closes=False) == expected_answer(PROMPT, 20)
        assert await call.code() == grpc.StatusCode.OK
        await until(lambda: server.service.num_streams == 0)


ENDINGS = ["cancel", "half-close", "deadline", "connection"]


@pytest.mark.parametrize("ending", ENDINGS)
async def test_whatever_ends_the_stream_ends_the_session_at_once(ending: str) -> None:
    engine = FakeEngine(step_s=0.01)
    long_opening = opening(sampling=SamplingParams(max_tokens=2000))
    async with serving(engine) as server, channel_to(server) as channel:
        stub = pb_grpc.VerificationServiceStub(channel)
        call = stub.Generate(timeout=0.5 if ending == "deadline" else None)
        await call.write(codec.encode_open(long_opening))
        await call.read()
        assert engine.num_sessions == 1
        if ending == "cancel":
            call.cancel()
        elif ending == "half-close":
            await call.done_writing()
            assert len(await tokens_of(call)) < 2000
            assert await call.code() == grpc.StatusCode.OK
        elif ending == "connection":
            await channel.close()
        await until(lambda: engine.num_sessions == 0 and server.service.num_streams == 0)
        assert engine.closed == [0]


async def test_a_slow_reader_congests_its_own_session_only() -> None:
    engine = FakeEngine()
    sampling = SamplingParams(max_tokens=4000)
    async with serving(engine, max_unsent_verdicts=8) as server, channel_to(server) as channel:
        stub = pb_grpc.VerificationServiceStub(channel)
        slow, quick = stub.Generate(), stub.Generate()
        await slow.write(codec.encode_open(opening(sampling=sampling)))
        await until(lambda: engine.opened)
        session = engine._sessions[0]
        await until(lambda: session.sink.is_congested, timeout_s=10)
        await quick.write(codec.encode_open(opening()))
        assert await tokens_of(quick) == expected_answer(PROMPT, 20)
        assert engine.num_sessions == 1, "the slow session must still wait for its reader"
        assert await tokens_of(slow) == expected_answer(PROMPT, 4000)


async def test_health_follows_readiness_and_the_engine() -> None:
    engine = FakeEngine(step_s=0.01)
    server = VerifierServer(engine, ServerOptions(health_poll_s=0.01))
    await server.start()
    async with channel_to(server) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        async def status(name: str) -> int:
            return (await health.Check(health_pb2.HealthCheckRequest(service=name))).status

        serving_status, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        assert [await status(""), await status(SERVICE_NAME)] == [not_serving] * 2
        await server.set_ready()
        assert [await status(""), await status(SERVICE_NAME)] == [serving_status] * 2

        call = pb_grpc.VerificationServiceStub(channel).Generate()
        await call.write(codec.encode_open(opening()))
        await call.read()
        engine.die(tells_sessions=False)
        error = await error_of(call)
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert "engine" in error.details()
        assert [await status(""), await status(SERVICE_NAME)] == [not_serving] * 2

        refused = pb_grpc.VerificationServiceStub(channel).Generate()
        await refused.write(codec.encode_open(opening()))
        assert (await error_of(refused)).code() == grpc.StatusCode.UNAVAILABLE
    await server.stop()


async def test_drain_lets_running_sessions_finish_and_refuses_new_ones() -> None:
    engine = FakeEngine(step_s=0.005)
    async with serving(engine) as server, channel_to(server) as channel:
        stub = pb_grpc.VerificationServiceStub(channel)
        call = stub.Generate()
        await call.write(codec.encode_open(opening()))
        await call.read()
        drain = asyncio.create_task(server.drain(grace_s=5.0))
        await asyncio.sleep(0.01)
        refused = stub.Generate()
        await refused.write(codec.encode_open(opening()))
        error = await error_of(refused)
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert "retry-after-ms" in metadata_of(error)
        assert await tokens_of(call) == expected_answer(PROMPT, 20)
        await drain


async def test_drain_ends_what_outlives_the_grace_as_retryable(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine(step_s=0.01)
    async with serving(engine) as server, channel_to(server) as channel:
        call = pb_grpc.VerificationServiceStub(channel).Generate()
        await call.write(codec.encode_open(opening(sampling=SamplingParams(max_tokens=2000))))
        await call.read()
        with caplog.at_level(logging.WARNING, logger="specedge_verifier"):
            await server.drain(grace_s=0.05)
        error = await error_of(call)
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert "retryable" in error.details()
        assert engine.num_sessions == 0
    assert "1 streams outlived the drain" in caplog.text


async def test_a_busy_port_is_named() -> None:
    async with serving(FakeEngine()) as server:
        second = VerifierServer(FakeEngine(), ServerOptions(port=server.port))
        with pytest.raises(InvalidRequest, match=f"127.0.0.1:{server.port}"):
            await second.start()


async def test_server_info_and_reflection() -> None:
    async with serving(FakeEngine()) as server, channel_to(server) as channel:
        stub = pb_grpc.VerificationServiceStub(channel)
        assert codec.decode_server_info(await stub.GetServerInfo(pb.GetServerInfoRequest())) == INFO
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = {service.name for service in (await call.read()).list_services_response.service}
        assert SERVICE_NAME in names
        assert "grpc.health.v1.Health" in names
        call.cancel()
