"""What passes between an edge and a verifier is counted alike on both sides, and what is refused is counted."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from edge_harness import PROMPT, answer_of, edge_at, wanted
from fakes import FINGERPRINT, FakeEngine, TreeDrafts, until

from specedge.sampling import SamplingParams
from specedge.verification.v1 import verification_pb2_grpc as pb_grpc
from specedge.wire import codec
from specedge.wire.messages import OpenSession
from specedge_verifier.grpc_server import ServerOptions, VerifierServer
from specedge_verifier.service import StreamOptions
from specedge_verifier.stream_observer import Direction

DEADLINE_S = 10.0
OPENING = OpenSession("request", PROMPT, (), SamplingParams(max_tokens=8), FINGERPRINT)


class Watch:
    """Implements `StreamObserver`."""

    def __init__(self) -> None:
        self.num_bytes: Counter[Direction] = Counter()
        self.reasons: Counter[str] = Counter()

    def wire_bytes(self, direction: Direction, num_bytes: int) -> None:
        self.num_bytes[direction] += num_bytes

    def rejected(self, reason: str) -> None:
        self.reasons[reason] += 1


@asynccontextmanager
async def watched(engine: FakeEngine, open_timeout_s: float = 10.0) -> AsyncIterator[tuple[VerifierServer, Watch]]:
    watch = Watch()
    options = ServerOptions(stream=StreamOptions(open_timeout_s=open_timeout_s))
    server = VerifierServer(engine, options, observer=watch)
    await server.start()
    await server.set_ready()
    try:
        yield server, watch
    finally:
        await server.stop()


def channel_to(server: VerifierServer) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")


async def test_both_sides_count_the_same_bytes() -> None:
    engine, drafts = FakeEngine(patience_s=5.0), TreeDrafts(num_nodes=12, num_right=3)
    async with watched(engine) as (server, watch), edge_at(server.port, drafts) as edge:
        await answer_of(edge.service, wanted(40))
        await until(lambda: server.service.num_streams == 0)
        counters = edge.counters
    assert watch.num_bytes["down"] == counters.num_bytes_received > 0
    assert 0 < watch.num_bytes["up"] <= counters.num_bytes_sent, "a draft may still be on its way when the answer ends"
    assert watch.reasons == {}


async def test_a_silent_stream_is_counted() -> None:
    async with watched(FakeEngine(), open_timeout_s=0.05) as (server, watch), channel_to(server) as channel:
        call = pb_grpc.VerificationServiceStub(channel).Generate()
        assert await asyncio.wait_for(call.code(), DEADLINE_S) is grpc.StatusCode.DEADLINE_EXCEEDED
    assert watch.reasons == {"DEADLINE_EXCEEDED": 1}


async def test_a_refused_session_is_counted() -> None:
    async with watched(FakeEngine(max_sessions=0)) as (server, watch), channel_to(server) as channel:
        call = pb_grpc.VerificationServiceStub(channel).Generate()
        await call.write(codec.encode_open(OPENING))
        assert await asyncio.wait_for(call.code(), DEADLINE_S) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert watch.reasons == {"RESOURCE_EXHAUSTED": 1}
    assert watch.num_bytes["up"] > 0
