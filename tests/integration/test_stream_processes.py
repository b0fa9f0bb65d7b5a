"""Streams served by processes of their own: clients see what they see of one process, and the engine holds no more."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import pytest_asyncio
from fakes import FINGERPRINT, INFO, VOCAB_SIZE, FakeEngine, expected_answer, serving, until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from stream_process_support import Seen, connection_to, stream_processes
from tls_support import Authority, link, server_source

from edge_agent.verifier_client import VerifierClient
from specedge.errors import InvalidRequest, TenantLimit
from specedge.grammar.spec import GrammarSpec
from specedge.hashed_secrets import spell_digest
from specedge.sampling import SamplingParams
from specedge.verification.v1 import verification_pb2 as pb
from specedge.verification.v1 import verification_pb2_grpc as pb_grpc
from specedge.wire import codec
from specedge.wire.draft_codec import DraftEncoder
from specedge.wire.load_hint import LoadHint
from specedge.wire.messages import DraftNodes, Draining, OpenSession, SessionOpened, Verdict
from specedge_verifier.authentication import Authentication
from specedge_verifier.grpc_server import ServerTls
from specedge_verifier.handshakes import Handshakes
from specedge_verifier.stream_processes import StreamProcesses
from specedge_verifier.tenants import Tenants

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = (70_000, 80_000, 90_000)
MAX_UNSENT = 8
WAIT_S = 20.0


def opening(num_tokens: int = 20, **changes: Any) -> OpenSession:
    message = OpenSession("r1", PROMPT, (), SamplingParams(max_tokens=num_tokens), FINGERPRINT, system="autoregressive")
    return replace(message, **changes)


def drafts() -> list[pb.GenerateRequest]:
    """The right answer as a chain of draft nodes."""
    return [*DraftEncoder().encode(DraftNodes(expected_answer(PROMPT, 19), [~2, *range(18)], [-0.1] * 19))]


class Stream:
    """One session of a bare client."""

    def __init__(self, channel: grpc.aio.Channel, token: str = "") -> None:
        metadata = (("authorization", f"Bearer {token}"),) if token else None
        self.call: Any = pb_grpc.VerificationServiceStub(channel).Generate(metadata=metadata)
        self.heard: list[object] = []

    async def open(self, message: OpenSession | None = None) -> "Stream":
        """Begins the session; returns itself once it is admitted."""
        await self.call.write(codec.encode_open(message or opening()))
        await self.hear()
        return self

    async def hear(self) -> object:
        """The next message, None at the end."""
        if (response := await self.call.read()) is grpc.aio.EOF:
            return None
        message = codec.decode_response(response, VOCAB_SIZE)
        self.heard.append(message)
        if isinstance(message, Verdict) and message.finish_reason:
            await self.call.done_writing()
        return message

    async def tokens(self) -> list[int]:
        """Those of the whole answer."""
        async with asyncio.timeout(WAIT_S):
            while await self.hear() is not None:
                pass
        return [token for message in self.heard if isinstance(message, Verdict) for token in message.token_ids]


async def error_of(requests: list[pb.GenerateRequest], port: int, token: str = "") -> tuple[object, ...]:
    """How a stream ends that begins so."""
    async with connection_to(port) as channel:
        stream = Stream(channel, token)
        # A stream that ends while something is written fails in the writing, and has a status of its own all the same.
        with pytest.raises(grpc.RpcError):
            for request in requests:
                await stream.call.write(request)
            await stream.tokens()
        call = stream.call
        return await call.code(), await call.details(), tuple(await call.trailing_metadata() or ())


class Busy:
    """Two processes of an engine, which the tests share one after the other."""

    def __init__(self, engine: FakeEngine, server: StreamProcesses, seen: Seen, registry: CollectorRegistry) -> None:
        self.engine = engine
        self.server = server
        self.seen = seen
        self.registry = registry

    def streams(self, index: int) -> float:
        """Streams of one process, as the metrics have them."""
        name = "specedge_verifier_stream_process_streams"
        return self.registry.get_sample_value(name, {"process": str(index)}) or 0.0


class Refusing:
    """Implements `Grammars`: one kind is refused, the others are taken after a while."""

    def begin(self, spec: GrammarSpec, sampling: SamplingParams, committed_ids: object = ()) -> "Future[Any]":
        future: Future[Any] = Future()
        if spec.kind == "regex":
            future.set_exception(InvalidRequest(f"the {spec.kind} is refused", spec.param))
        else:
            asyncio.get_running_loop().call_later(0.05, future.set_result, None)
        return future


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def busy() -> AsyncIterator[Busy]:
    engine, seen, registry = FakeEngine(max_sessions=6), Seen(), CollectorRegistry()
    async with stream_processes(
        engine, seen=seen, grammars=Refusing(), registry=registry, max_unsent_verdicts=MAX_UNSENT
    ) as server:
        yield Busy(engine, server, seen, registry)
    assert not seen.lost


@pytest.fixture(autouse=True)
def settled(busy: Busy) -> None:
    busy.engine.patience_s, busy.engine.step_s, busy.engine.max_sessions = 0.005, 0.0, 64


async def both(busy: Busy, stack: AsyncExitStack) -> list[Stream]:
    """Running sessions of both processes; which process has a connection is the kernel's choice."""
    streams: list[Stream] = []
    async with asyncio.timeout(WAIT_S):
        while not (busy.streams(0) and busy.streams(1)):
            channel = await stack.enter_async_context(connection_to(busy.server.port))
            streams.append(await Stream(channel).open(opening(400)))
            await asyncio.sleep(0.05)
    return streams


async def test_sessions_of_several_connections_are_served_by_both_processes(busy: Busy) -> None:
    busy.engine.step_s = 0.02
    async with AsyncExitStack() as stack:
        streams = await both(busy, stack)
        busy.engine.step_s = 0.0
        answers = await asyncio.gather(*(stream.tokens() for stream in streams))
    assert all(answer == expected_answer(PROMPT, 400) for answer in answers)
    assert all(isinstance(stream.heard[0], SessionOpened) for stream in streams)
    await until(lambda: not busy.engine.num_sessions and not busy.server.num_streams)
    await until(lambda: not busy.streams(0) and not busy.streams(1))


async def test_drafts_reach_the_engine_and_what_passes_is_counted_once(busy: Busy) -> None:
    async def talk(port: int, engine: FakeEngine) -> int:
        engine.patience_s = 5.0
        before = engine.num_nodes_verified
        async with connection_to(port) as channel:
            stream = Stream(channel)
            await stream.call.write(codec.encode_open(opening(system="specedge")))
            for request in drafts():
                await stream.call.write(request)
            assert await stream.tokens() == expected_answer(PROMPT, 20)
        await error_of([pb.GenerateRequest()], port)
        return engine.num_nodes_verified - before

    alone = Seen()
    async with serving(engine := FakeEngine(), observer=alone) as server:  # type: ignore[arg-type]
        assert await talk(server.port, engine) == 19
    await asyncio.sleep(0.5)  # what earlier tests have counted has come
    busy.seen.num_bytes.clear()
    busy.seen.rejections.clear()
    assert await talk(busy.server.port, busy.engine) == 19
    await until(lambda: busy.seen.rejections == alone.rejections and busy.seen.num_bytes == alone.num_bytes)


REFUSALS: dict[str, list[pb.GenerateRequest]] = {
    "too long": [codec.encode_open(opening(5000))],
    "full": [codec.encode_open(opening())],
    "other tokenizer": [codec.encode_open(opening(tokenizer_fingerprint="another"))],
    "empty": [pb.GenerateRequest()],
    "opened twice": [codec.encode_open(opening(2000)), codec.encode_open(opening())],
    "unknown parent": [
        codec.encode_open(opening(2000, system="specedge")),
        pb.GenerateRequest(draft_nodes=pb.DraftNodes(token_ids=[5], parent_deltas=[0], scores=b"\0", anchor=900)),
    ],
}


@pytest.mark.parametrize("requests", REFUSALS.values(), ids=REFUSALS.keys())
async def test_refusals_are_those_of_one_process(busy: Busy, requests: list[pb.GenerateRequest]) -> None:
    engine = FakeEngine(patience_s=1.0, max_sessions=0 if requests is REFUSALS["full"] else 64)
    busy.engine.max_sessions, busy.engine.patience_s = engine.max_sessions, 1.0
    async with serving(engine) as server:
        code, details, metadata = await error_of(requests, server.port)
    assert await error_of(requests, busy.server.port) == (code, details, metadata)
    await until(lambda: not busy.engine.num_sessions and not busy.server.num_streams)


async def test_grammars_are_compiled_where_the_engine_is(busy: Busy) -> None:
    def following(kind: str) -> OpenSession:
        message = opening()
        return replace(message, sampling=replace(message.sampling, grammar=GrammarSpec(kind, "a+", "guided")))

    code, details, metadata = await error_of([codec.encode_open(following("regex"))], busy.server.port)
    assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, "the regex is refused")
    assert ("specedge-param", "guided") in metadata
    async with connection_to(busy.server.port) as channel:
        assert await (await Stream(channel).open(following("ebnf"))).tokens() == expected_answer(PROMPT, 20)
        num_opened = len(busy.engine.opened)
        leaving = Stream(channel)
        await leaving.call.write(codec.encode_open(following("ebnf")))
        await until(lambda: busy.server.num_streams)
        leaving.call.cancel()
        await until(lambda: not busy.server.num_streams)
        await asyncio.sleep(0.1)
        assert len(busy.engine.opened) <= num_opened + 1 and not busy.engine.num_sessions


async def test_a_client_that_leaves_leaves_nothing(busy: Busy) -> None:
    busy.engine.step_s = 0.02
    async with AsyncExitStack() as stack:
        streams = await both(busy, stack)
        assert busy.engine.num_sessions == len(streams) == busy.server.num_streams
        for stream in streams[::2]:
            stream.call.cancel()
        for stream in streams[1::2]:
            await stream.call.done_writing()
        await until(lambda: not busy.engine.num_sessions and not busy.server.num_streams)


async def test_a_slow_reader_congests_its_own_session_only(busy: Busy) -> None:
    async with connection_to(busy.server.port) as channel:
        slow = await Stream(channel).open(opening(4000))
        session = next(iter(busy.engine._sessions.values()))
        await until(lambda: session.sink.is_congested, WAIT_S)
        assert await (await Stream(channel).open()).tokens() == expected_answer(PROMPT, 20)
        assert busy.engine.num_sessions == 1, "the slow session must still wait for its reader"
        assert await slow.tokens() == expected_answer(PROMPT, 4000)


async def test_each_process_tells_how_busy_the_engine_is(busy: Busy) -> None:
    async def hint() -> LoadHint | None:
        async with connection_to(busy.server.port) as channel:
            call = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert (await call).status == health_pb2.HealthCheckResponse.SERVING
            return LoadHint.find(await call.trailing_metadata())

    busy.engine.step_s = 0.05
    async with AsyncExitStack() as stack:
        streams = await both(busy, stack)
        await asyncio.sleep(0.5)
        for _ in range(6):
            assert await hint() == LoadHint(len(streams), INFO.max_batch_size)


# Each of the following has processes of its own.


async def test_processes_that_drain_tell_their_sessions_let_them_finish_and_end() -> None:
    engine = FakeEngine(step_s=0.01)
    async with stream_processes(engine) as server, connection_to(server.port) as channel:
        stream = await Stream(channel).open(opening(60, takes_draining=True))
        draining = asyncio.create_task(server.drain(WAIT_S))
        tokens = await stream.tokens()
        assert any(isinstance(message, Draining) for message in stream.heard)
        assert tokens == expected_answer(PROMPT, 60)
        await draining
        assert [await process.wait() for process in server.processes] == [0, 0]


async def test_what_outlives_the_grace_ends_as_retryable() -> None:
    engine = FakeEngine(step_s=0.5)
    async with stream_processes(engine, 1) as server, connection_to(server.port) as channel:
        stream = await Stream(channel).open()
        await server.drain(0.1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.tokens()
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert ("specedge-error", "draining") in tuple(caught.value.trailing_metadata() or ())
        assert not engine.num_sessions


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_process_that_dies_or_hangs_is_noticed(number: signal.Signals) -> None:
    engine, seen = FakeEngine(step_s=0.02), Seen()
    async with stream_processes(engine, 1, seen=seen, silence_s=1.0) as server, connection_to(server.port) as channel:
        await Stream(channel).open(opening(2000))
        (process,) = server.processes
        os.kill(process.pid, number)
        await until(lambda: seen.lost, WAIT_S)
        assert f"stream process {process.pid} is lost" in str(seen.lost[0])
        await server.stop()
        assert not engine.num_sessions
        assert not psutil.pid_exists(process.pid)
    assert len(seen.lost) == 1


async def test_a_dead_engine_is_told_of_by_every_process() -> None:
    engine = FakeEngine(step_s=0.02)
    async with stream_processes(engine, 1) as server, connection_to(server.port) as channel:
        stream = await Stream(channel).open(opening(2000))
        engine.die()
        with pytest.raises(grpc.aio.AioRpcError, match="the engine has died"):
            await stream.tokens()
        health = health_pb2_grpc.HealthStub(channel)

        async def serves() -> bool:
            status: int = (await health.Check(health_pb2.HealthCheckRequest())).status
            return status == health_pb2.HealthCheckResponse.SERVING

        async with asyncio.timeout(WAIT_S):
            while await serves():  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_a_port_in_use_is_an_error_even_where_it_is_shared() -> None:
    async with stream_processes(FakeEngine(), 1) as server:
        for make in (stream_processes, serving):
            with pytest.raises(InvalidRequest, match=f"cannot listen on 127.0.0.1:{server.port}"):
                async with make(FakeEngine(), port=server.port):  # type: ignore[operator]
                    pass


async def test_connections_are_mutual_tls_and_counted(tmp_path: Path) -> None:
    authority, registry = Authority(tmp_path / "ours"), CollectorRegistry()
    own, edge = authority.files("server", is_server=True), authority.files("edge")
    tls = ServerTls(server_source(own, authority.file), Handshakes(registry))

    def num_served() -> float | None:
        return registry.get_sample_value("specedge_verifier_tls_connections_total", {"outcome": "served"})

    async with stream_processes(FakeEngine(), 1, tls=tls) as server:
        client = VerifierClient(f"127.0.0.1:{server.port}", tls=link(authority.file, edge))
        try:
            assert (await client.ask_server_info(WAIT_S)).target_model == INFO.target_model
        finally:
            await client.close()
        async with connection_to(server.port) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await Stream(channel).open()
        await until(lambda: num_served() == 1)


def tenants_of(*names: str) -> str:
    return "".join(f'- name: "{name}"\n  tokens:\n    - {spell_digest("te-" + name)}\n' for name in names)


async def test_tenants_are_known_by_the_processes_and_their_limits_where_the_engine_is(tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text(tenants_of("alice", "bob"))
    authentication = Authentication(Tenants(path, check_interval_s=0.05))
    opened: list[str] = []

    class Limited(FakeEngine):
        def open(self, message: Any, sink: Any, grammar: Any = None, account: Any = None) -> int:
            opened.append(account.name)
            assert account is authentication.tenants.accounts[account.name]
            if account.name == "bob":
                raise TenantLimit("tenant bob has 1 session", retry_after_s=3.0)
            return super().open(message, sink, grammar, account)

    engine = Limited()
    async with stream_processes(engine, 1, tenants_file=path, authentication=authentication) as server:
        code, details, metadata = await error_of([codec.encode_open(opening())], server.port, "te-bob")
        assert (code, details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "tenant bob has 1 session")
        assert {("retry-after-ms", "3000"), ("specedge-error", "tenant")} <= set(metadata)
        assert (await error_of([codec.encode_open(opening())], server.port))[0] == grpc.StatusCode.UNAUTHENTICATED
        await until(lambda: authentication.refused == {"no_credentials": 1})
        async with connection_to(server.port) as channel:
            assert await (await Stream(channel, "te-alice").open()).tokens() == expected_answer(PROMPT, 20)
            engine.step_s = 0.05
            revoked = await Stream(channel, "te-alice").open(opening(2000))
            await asyncio.sleep(0.01)  # a changed file has another time
            path.write_text(tenants_of("carol"))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await revoked.tokens()
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
            await until(lambda: not engine.num_sessions)
            engine.step_s = 0.0
            assert await (await Stream(channel, "te-carol").open()).tokens() == expected_answer(PROMPT, 20)
    assert opened == ["bob", "alice", "alice", "carol"]
