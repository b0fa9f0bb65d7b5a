"""Tenants over real sockets: who is let in, whose session is whose, and what each may take."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest
from engine_thread import INFO, MAX_LEN, OpenEngine, Target, running
from fake_target import FakeStep, answer
from fakes import serving, until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from edge_agent.draft_source import NullDraftSource
from edge_agent.generation import GenerationOptions, GenerationRequest, GenerationService
from edge_agent.http.errors import describe
from edge_agent.verifier_client import VerifierClient, no_metadata
from edge_agent.verifier_token import VerifierToken
from specedge.errors import InvalidRequest, SpecEdgeError, TenantLimit, Unauthenticated, VerifierUnavailable
from specedge.hashed_secrets import spell_digest
from specedge.sampling import SamplingParams
from specedge.verification.v1 import verification_pb2 as pb
from specedge.verification.v1 import verification_pb2_grpc as pb_grpc
from specedge.wire import codec
from specedge.wire.channel import client_options
from specedge.wire.messages import OpenSession, SessionOpened
from specedge.wire.status import Metadata, from_status, to_status
from specedge_verifier.authentication import Authentication
from specedge_verifier.scheduler import Schedule
from specedge_verifier.tenants import Tenants

TOKENS = {name: f"te-specedge-{name}" for name in ("alice", "bob", "new")}
PROMPT = tuple(index * index % 5 for index in range(24))
WAIT_S = 10.0


def entry(name: str, tokens: Sequence[str] = (), **limits: object) -> str:
    lines = [f'- name: "{name}"', "  tokens:", *(f"    - {spell_digest(token)}" for token in tokens or [TOKENS[name]])]
    return "\n".join([*lines, *(f"  {field}: {value}" for field, value in limits.items())]) + "\n"


def put(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


class Recorder(Target):
    """Writes down whose sessions each step has; a step takes a little time, so that answers are not over at once."""

    def __init__(self, step_s: float = 0.002) -> None:
        super().__init__()
        self.steps: list[list[str]] = []
        self._step_s = step_s

    def launch(self, schedule: Schedule) -> FakeStep:
        self.steps.append([item.session.tenant.name for item in schedule.planned])
        time.sleep(self._step_s)
        return super().launch(schedule)


class Verifier:
    def __init__(self, engine: OpenEngine, target: Recorder, port: int, authentication: Authentication) -> None:
        self.engine = engine
        self.target = target
        self.port = port
        self.authentication = authentication

    def account(self, name: str):  # type: ignore[no-untyped-def]
        return self.authentication.tenants.accounts[name]


@asynccontextmanager
async def verifier(path: Path, **limits: int) -> AsyncIterator[Verifier]:
    """A verifier for the tenants of a file, which it looks at all the time."""
    target, authentication = Recorder(), Authentication(Tenants(path, check_interval_s=0.01))
    async with running(target, **limits) as engine, serving(engine, authentication=authentication) as server:
        yield Verifier(engine, target, server.port, authentication)


def token(name: str) -> Metadata:
    return VerifierToken(TOKENS[name])()


class Edge:
    def __init__(self, port: int, metadata=no_metadata, deadline_s: float = 5.0) -> None:  # type: ignore[no-untyped-def]
        self.client = VerifierClient(f"127.0.0.1:{port}", metadata=metadata)
        options = GenerationOptions(verifier_deadline_s=deadline_s, stall_timeout_s=5.0)
        self.service = GenerationService(self.client, NullDraftSource(), INFO.tokenizer_fingerprint, options)

    async def answer(self, num_tokens: int, prompt: Sequence[int] = PROMPT, request_id: str = "r1") -> list[int]:
        request = GenerationRequest(request_id, tuple(prompt), SamplingParams(max_tokens=num_tokens))
        async with self.service.generate(request) as bursts, aclosing(bursts):
            return [token_id async for burst in bursts for token_id in burst.token_ids]


@asynccontextmanager
async def edge(port: int, metadata=no_metadata, **options: float) -> AsyncIterator[Edge]:  # type: ignore[no-untyped-def]
    made = Edge(port, metadata, **options)
    try:
        await made.service.start()
        yield made
    finally:
        await made.client.close()


@asynccontextmanager
async def channel(port: int) -> AsyncIterator[grpc.aio.Channel]:
    address = f"127.0.0.1:{port}"
    async with grpc.aio.insecure_channel(address, options=client_options(address)) as made:
        yield made


@pytest.fixture
def tenants_file(tmp_path: Path) -> Path:
    path = tmp_path / "tenants.yaml"
    path.write_text(entry("alice") + entry("bob"))
    return path


async def status_of(call) -> tuple[grpc.StatusCode, str]:  # type: ignore[no-untyped-def]
    try:
        async with asyncio.timeout(WAIT_S):
            await (call if asyncio.iscoroutine(call) else call.read())
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


@pytest.mark.parametrize(
    ("metadata", "reason", "told"),
    [
        ((), "no_credentials", "send a tenant's token"),
        ((("authorization", "Bearer te-specedge-mallory"),), "unknown_token", "no tenant's here"),
        ((("authorization", "Bearer "),), "no_credentials", "send a tenant's token"),
        ((("authorization", f"Basic {TOKENS['alice']}"),), "no_credentials", "send a tenant's token"),
        ((("authorization", spell_digest(TOKENS["alice"])),), "no_credentials", "send a tenant's token"),
        ((("authorization", f"bearer {spell_digest(TOKENS['alice'])}"),), "unknown_token", "no tenant's here"),
        ((("x-tenant", "alice"), ("authorization", "Bearer alice")), "unknown_token", "no tenant's here"),
    ],
)
async def test_nobody_else_is_answered(tenants_file: Path, metadata: Metadata, reason: str, told: str) -> None:
    async with verifier(tenants_file) as at, channel(at.port) as raw:
        stub, names = pb_grpc.VerificationServiceStub(raw), reflection_pb2_grpc.ServerReflectionStub(raw)
        request = pb.GetServerInfoRequest(protocol_version=1)
        for call in (stub.Generate(metadata=metadata), names.ServerReflectionInfo(metadata=metadata)):
            code, details = await status_of(call)
            assert code is grpc.StatusCode.UNAUTHENTICATED and told in details
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetServerInfo(request, metadata=metadata)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "alice" not in (refused.value.details() or "")
        assert at.authentication.refused == {reason: 3}
        answered = await health_pb2_grpc.HealthStub(raw).Check(health_pb2.HealthCheckRequest())
        assert answered.status == health_pb2.HealthCheckResponse.SERVING, "health is open"
        assert at.engine.num_sessions == 0


async def test_a_tenant_is_answered_and_what_it_uses_is_its_own(tenants_file: Path) -> None:
    async with verifier(tenants_file) as at, channel(at.port) as raw:
        async with edge(at.port, lambda: token("alice")) as alice:
            assert await alice.answer(30) == answer(PROMPT, 30)
        names = reflection_pb2_grpc.ServerReflectionStub(raw)
        listing = names.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), metadata=token("bob")
        )
        services = await listing.read()
        assert len(services.list_services_response.service) == 3
        await until(lambda: at.engine.num_sessions == 0)
        usage, other = at.account("alice").usage, at.account("bob").usage
    assert (usage.num_sessions, usage.prompt, usage.committed, usage.verified) == (1, len(PROMPT), 30, 30)
    assert (other.num_sessions, other.prompt) == (0, 0)


async def test_refusals_do_not_flood_the_log(tenants_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with verifier(tenants_file) as at, channel(at.port) as raw:
        stub = pb_grpc.VerificationServiceStub(raw)
        with caplog.at_level(logging.INFO, "specedge_verifier.authentication"):
            for _ in range(40):
                code, _ = await status_of(stub.Generate(metadata=(("authorization", "Bearer te-specedge-wrong"),)))
                assert code is grpc.StatusCode.UNAUTHENTICATED
    lines = [record.getMessage() for record in caplog.records if record.name == "specedge_verifier.authentication"]
    assert len(lines) == 1 and "te-specedge" not in lines[0]
    assert at.authentication.refused == {"unknown_token": 40}


async def test_an_edge_without_its_token_says_which_setting_it_lacks(tenants_file: Path) -> None:
    async with verifier(tenants_file) as at:
        refused = Edge(at.port, deadline_s=0.3)
        with pytest.raises(VerifierUnavailable, match="verifier_token"):
            await refused.service.start()
        assert not refused.service.is_ready and "verifier_token_file" in (refused.service.failure or "")
        with pytest.raises(VerifierUnavailable, match=r"refuses this edge.*verifier_token") as caught:
            await refused.answer(4)
        assert describe(caught.value).status == 503
        await refused.client.close()


async def test_a_revoked_token_ends_running_sessions_and_a_new_one_goes_on_with_them(
    tenants_file: Path, tmp_path: Path
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(TOKENS["alice"] + "\n")
    put(tenants_file, entry("alice", [TOKENS["alice"], TOKENS["new"]]) + entry("bob"))
    async with (
        verifier(tenants_file) as at,
        edge(at.port, VerifierToken(path=token_file)) as alice,
        edge(at.port, lambda: token("bob")) as bob,
    ):
        first = asyncio.create_task(alice.answer(220))
        other = asyncio.create_task(bob.answer(220))
        await until(lambda: len(at.target.steps) > 20, WAIT_S)
        token_file.write_text(TOKENS["new"])
        put(tenants_file, entry("alice", [TOKENS["new"]]) + entry("bob"))
        async with asyncio.timeout(WAIT_S):
            assert await first == answer(PROMPT, 220), "byte for byte, over two streams"
            assert await other == answer(PROMPT, 220)
        assert at.authentication.refused == {"revoked": 1}
        assert at.account("alice").usage.num_sessions == 2 and at.account("bob").usage.num_sessions == 1
        assert alice.service.is_ready


async def test_a_tenant_that_is_removed_is_refused_at_once_and_its_neighbour_notices_nothing(
    tenants_file: Path,
) -> None:
    async with (
        verifier(tenants_file) as at,
        edge(at.port, lambda: token("alice"), deadline_s=1.0) as alice,
        edge(at.port, lambda: token("bob")) as bob,
    ):
        first = asyncio.create_task(alice.answer(220))
        other = asyncio.create_task(bob.answer(220))
        await until(lambda: len(at.target.steps) > 20, WAIT_S)
        put(tenants_file, entry("bob"))
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(VerifierUnavailable, match="verifier_token"):
                await first
            assert await other == answer(PROMPT, 220)
        assert at.authentication.refused["revoked"] == 1
        assert not alice.service.is_ready and bob.service.is_ready
        with pytest.raises(VerifierUnavailable, match="verifier_token"):
            await alice.answer(4)
        put(tenants_file, "- name: alice")
        await asyncio.sleep(0.05)
        assert await bob.answer(3) == answer(PROMPT, 3), "a file that is wrong changes nothing"
        put(tenants_file, entry("alice") + entry("bob"))
        async with asyncio.timeout(WAIT_S):
            while alice.client.refusal is not None:
                with suppress(Unauthenticated):
                    await alice.client.ask_server_info(WAIT_S)
        assert await alice.answer(4) == answer(PROMPT, 4)


async def open_raw(raw: grpc.aio.Channel, name: str, committed: Sequence[int] = (), num_tokens: int = 200):  # type: ignore[no-untyped-def]
    """A stream of a tenant that claims to go on with the session "secret"."""
    stub = pb_grpc.VerificationServiceStub(raw)
    call = stub.Generate(metadata=token(name))
    params = SamplingParams(max_tokens=num_tokens)
    opening = OpenSession("secret", PROMPT, tuple(committed), params, INFO.tokenizer_fingerprint)
    await call.write(codec.encode_open(opening))
    first = codec.decode_response(await call.read(), INFO.vocab_size)
    assert isinstance(first, SessionOpened)
    return call, first


async def test_guessing_anothers_session_gives_nothing_of_it(tenants_file: Path) -> None:
    async with verifier(tenants_file) as at, channel(at.port) as one, channel(at.port) as two:
        theirs, _ = await open_raw(one, "alice")
        await until(lambda: at.account("alice").usage.committed > 30, WAIT_S)
        known = answer(PROMPT, 20)
        mine, opened = await open_raw(two, "bob", known)
        assert opened.num_cached_tokens == 0, "of what is being computed for the other, nothing is found"
        mine.cancel()
        again, opened = await open_raw(two, "alice", known)
        assert opened.num_cached_tokens == len(PROMPT), "by its own tenant all of the prompt is"
        again.cancel()
        tokens: list[int] = []
        while len(tokens) < 200:
            verdict = codec.decode_response(await theirs.read(), INFO.vocab_size)
            tokens += verdict.token_ids
        assert tokens == answer(PROMPT, 200), "and the session itself goes on as if nothing had been"


async def test_a_flood_leaves_the_other_tenant_its_steps(tenants_file: Path) -> None:
    async with (
        verifier(tenants_file, max_sessions=12, max_batch_size=4) as at,
        edge(at.port, lambda: token("alice")) as alice,
        edge(at.port, lambda: token("bob")) as bob,
    ):
        flood = [asyncio.create_task(alice.answer(MAX_LEN - len(PROMPT), request_id=f"a{n}")) for n in range(12)]
        await until(lambda: at.engine.num_sessions == 12, WAIT_S)
        with pytest.raises(SpecEdgeError, match="12 sessions are running or waiting"):
            await alice.answer(3)
        assert await bob.answer(60) == answer(PROMPT, 60), "the full queue is the other's"
        steps = [tenants for tenants in at.target.steps if "bob" in tenants]
        first = next(index for index, tenants in enumerate(at.target.steps) if "bob" in tenants)
        assert len(steps) >= 60
        assert at.target.steps[first : first + len(steps)] == steps, "a token in every step, from its first to its last"
        assert all(len(tenants) == 4 for tenants in steps), "and none of the others' places is idle"
        for task in flood:
            task.cancel()
        await asyncio.wait(flood)
    assert at.account("alice").usage.refusals == {"queue": 1}


async def test_each_limit_refuses_with_its_value_and_what_it_is(tenants_file: Path) -> None:
    put(tenants_file, entry("alice", max_sessions=2, max_prompt_tokens=30, kv_share=0.1) + entry("bob"))
    async with (
        verifier(tenants_file, max_sessions=12) as at,
        edge(at.port, lambda: token("alice")) as alice,
        edge(at.port, lambda: token("bob")) as bob,
    ):
        with pytest.raises(InvalidRequest, match="31 tokens; max_prompt_tokens of tenant alice is 30"):
            await alice.answer(4, [1] * 31)
        with pytest.raises(InvalidRequest, match=r"need 26 KV blocks; kv_share of tenant alice is 0\.1, which is 25"):
            await alice.answer(80)
        both = [asyncio.create_task(alice.answer(70)) for _ in range(2)]
        await until(lambda: at.engine.num_sessions == 2, WAIT_S)
        with pytest.raises(TenantLimit, match="2 sessions of tenant alice are running or waiting, and max_sess") as hit:
            await alice.answer(4)
        described = describe(hit.value)
        assert (described.status, described.code) == (429, "tenant_limit") and described.retry_after_s
        assert await bob.answer(120, [1] * 40) == answer([1] * 40, 120)
        assert await asyncio.gather(*both) == [answer(PROMPT, 70)] * 2
        assert at.account("alice").usage.refusals == {"prompt": 1, "kv": 1, "sessions": 1}
        put(tenants_file, entry("alice", max_sessions=1, max_prompt_tokens=40) + entry("bob"))
        await until(lambda: at.account("alice").limits.max_sessions == 1, WAIT_S)
        assert await alice.answer(4, [1] * 31) == answer([1] * 31, 4), "new limits hold without a restart"


async def test_without_a_file_everyone_is_let_in() -> None:
    target = Recorder()
    async with running(target) as engine, serving(engine) as server, edge(server.port) as anyone:
        assert await anyone.answer(10) == answer(PROMPT, 10)
    assert {name for step in target.steps for name in step} == {"default"}


def test_the_status_of_a_tenants_limit_and_of_a_stranger_cross_the_wire() -> None:
    for error in (TenantLimit("too much", 2.5), Unauthenticated("who are you")):
        status = to_status(error)
        back = from_status(status.code, status.details, status.metadata)
        assert type(back) is type(error) and str(back) == str(error)
    assert isinstance(back, Unauthenticated) and status.metadata == ()
