"""What whoever listens to the encrypted link between edge and verifier learns from lengths and times of its frames."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest
from edge_harness import PROMPT, answer_of, edge_at, wanted
from fakes import FINGERPRINT, INFO, FakeEngine, TreeDrafts, expected_answer, serving, until
from prometheus_client import CollectorRegistry
from tcp_proxy import TcpProxy
from tls_support import Authority, link, server_source

from edge_agent.draft_source import NullDraftSource
from specedge.sampling import SamplingParams
from specedge.verification.v1 import verification_pb2 as pb
from specedge.verification.v1 import verification_pb2_grpc as pb_grpc
from specedge.wire import codec
from specedge.wire.channel import FRAMING_BYTES
from specedge.wire.messages import OpenSession
from specedge.wire.shaping import UNSHAPED, Cadence, FrameShape, is_padding
from specedge_bench.network.forwarding import Direction
from specedge_verifier.grpc_server import ServerTls
from specedge_verifier.handshakes import Handshakes
from specedge_verifier.stream_observer import Direction as Way

PAD_BYTES = 256
NUM_TOKENS = 60
APPLICATION_DATA = 23
TLS_BYTES = 17
"""What TLS 1.3 adds to a record."""
WINDOW_UPDATE_BYTES = 13
PING_BYTES = 17
DRAFTS = {
    "nothing accepted": lambda: TreeDrafts(num_nodes=8, num_right=0),
    "two accepted": lambda: TreeDrafts(num_nodes=12, num_right=2),
    "six accepted": lambda: TreeDrafts(num_nodes=24, num_right=6),
    "no drafts": NullDraftSource,
}


class Listener(TcpProxy):
    """Keeps what passes."""

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self.heard = {direction: bytearray() for direction in Direction}

    def _count(self, direction: Direction, data: bytes) -> None:
        self.heard[direction] += data

    def frames(self, direction: Direction) -> list[int]:
        """Lengths of the encrypted records."""
        heard, lengths, at = self.heard[direction], [], 0
        while at < len(heard):
            length = int.from_bytes(heard[at + 3 : at + 5])
            if heard[at] == APPLICATION_DATA:
                lengths.append(length)
            at += 5 + length
        return lengths


async def overheard(folder: Path, drafts: str, shape: FrameShape) -> dict[Direction, list[int]]:
    """Runs an answer over TLS and returns the lengths of all records but those that open connection and stream."""
    authority = Authority(folder / "ca")
    tls = ServerTls(server_source(authority.files("server", is_server=True)), Handshakes(CollectorRegistry()))
    engine = FakeEngine(patience_s=0.2, step_s=0.001)
    async with serving(engine, tls=tls, shape=shape) as server:
        listener = Listener(server.port)
        await listener.start()
        async with edge_at(listener.port, DRAFTS[drafts](), tls=link(authority.file), shape=shape) as edge:
            request = wanted(NUM_TOKENS)
            async with edge.service.generate(request) as bursts, aclosing(bursts):
                tokens = [*(await anext(bursts)).token_ids]
                before = {direction: len(listener.frames(direction)) for direction in Direction}
                async for burst in bursts:
                    tokens += burst.token_ids
            assert tokens == expected_answer(PROMPT, NUM_TOKENS)
            heard = {direction: listener.frames(direction)[before[direction] :] for direction in Direction}
        await listener.close()
    return heard


async def test_unshaped_frames_tell_how_many_tokens_were_accepted(tmp_path: Path) -> None:
    """The control: the listener would notice."""
    none = await overheard(tmp_path, "nothing accepted", UNSHAPED)
    six = await overheard(tmp_path, "six accepted", UNSHAPED)
    assert max(none[Direction.DOWN]) < max(six[Direction.DOWN])


@pytest.mark.parametrize("drafts", DRAFTS)
async def test_padded_frames_are_equally_long_whatever_was_accepted(tmp_path: Path, drafts: str) -> None:
    shape = FrameShape(PAD_BYTES, 0.01)
    heard = await overheard(tmp_path, drafts, shape)
    frame = PAD_BYTES + FRAMING_BYTES + TLS_BYTES
    # HTTP/2 says in records of its own, or beside a frame, that it has received the other side's, and that it lives.
    updates = [number * WINDOW_UPDATE_BYTES for number in range(4)]
    for direction in Direction:
        lengths = Counter(heard[direction])
        assert set(lengths) <= {frame + each for each in updates} | {
            TLS_BYTES + each for each in [*updates, PING_BYTES]
        }, lengths
        assert sum(lengths[frame + each] for each in updates) >= 5


class ByHand(Cadence):
    """Ticks when the test says so."""

    def __init__(self) -> None:
        self.num_allowed = asyncio.Semaphore(0)

    async def tick(self) -> None:
        await self.num_allowed.acquire()

    async def before_tick(self, lead_s: float) -> None:
        await asyncio.sleep(0)


@dataclass(frozen=True)
class HandPaced(FrameShape):
    """The time of frames is the test's."""

    hand: ByHand | None = None

    def cadence(self) -> Cadence | None:
        return self.hand


class Bytes:
    """A StreamObserver that keeps the length of every message."""

    def __init__(self) -> None:
        self.passed: dict[Way, list[int]] = {"up": [], "down": []}

    def wire_bytes(self, direction: Way, num_bytes: int) -> None:
        self.passed[direction].append(num_bytes - FRAMING_BYTES)

    def rejected(self, reason: str) -> None:
        raise AssertionError(reason)


async def raw_stream(port: int, *, takes_padding: bool) -> AsyncIterator[pb.GenerateResponse]:
    """What an edge that understands padding, or one that does not, receives; it drafts nothing."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = pb_grpc.VerificationServiceStub(channel).Generate()
        opening = OpenSession("r1", PROMPT, (), SamplingParams(max_tokens=9), FINGERPRINT, takes_padding=takes_padding)
        await call.write(codec.encode_open(opening))
        while (response := await call.read()) is not grpc.aio.EOF:
            yield response
            if response.verdict.finish_reason:
                await call.done_writing()


async def test_one_frame_leaves_at_each_tick_whether_there_is_a_verdict_or_not() -> None:
    hand = ByHand()
    engine = FakeEngine(patience_s=0.03)  # so that ticks find nothing to say in between
    async with serving(engine, shape=HandPaced(PAD_BYTES, 1.0, hand)) as server:
        responses, tokens, num_padding, num_ticks = raw_stream(server.port, takes_padding=True), [], 0, 0
        async with aclosing(responses):
            while len(tokens) < 9:
                hand.num_allowed.release()
                num_ticks += 1
                async with asyncio.timeout(10):
                    response = await anext(responses)
                assert response.ByteSize() == PAD_BYTES
                num_padding += is_padding(response)
                tokens += response.verdict.token_ids
            assert tokens == expected_answer(PROMPT, 9)
            assert num_padding > 0 and num_ticks == num_padding + 1 + 9, "a tick is never late for more than one frame"
            hand.num_allowed.release()
            assert [each async for each in responses] == []


async def test_an_edge_that_does_not_know_padding_gets_verdicts_alone() -> None:
    hand = ByHand()
    async with serving(FakeEngine(), shape=HandPaced(PAD_BYTES, 1.0, hand)) as server:
        for _ in range(11):
            hand.num_allowed.release()
        responses = [each async for each in raw_stream(server.port, takes_padding=False)]
    assert [each.WhichOneof("message") for each in responses] == ["opened", *["verdict"] * 9]
    assert {each.ByteSize() for each in responses} == {PAD_BYTES}


async def test_nothing_is_verified_that_could_not_leave() -> None:
    hand = ByHand()
    verdicts = []
    engine = FakeEngine()
    engine.tamper = lambda handle, verdict: verdicts.append(verdict) or verdict  # type: ignore[func-returns-value]
    async with serving(engine, shape=HandPaced(PAD_BYTES, 1.0, hand)) as server:
        responses = raw_stream(server.port, takes_padding=False)
        async with aclosing(responses):
            for num_ticks in range(1, 6):
                hand.num_allowed.release()
                await anext(responses)
                await until(lambda: len(verdicts) == num_ticks)  # noqa: B023
                await asyncio.sleep(0.01)
                assert len(verdicts) == num_ticks, "the next one waits for the tick"


async def test_drafts_leave_by_ticks_as_well_and_split_to_fit() -> None:
    hand, watched = ByHand(), Bytes()
    engine = FakeEngine(patience_s=10.0)
    async with serving(engine, observer=watched) as server:
        drafts = TreeDrafts(num_nodes=64, num_right=4)
        async with edge_at(server.port, drafts, shape=HandPaced(PAD_BYTES, 1.0, hand)) as edge:
            asking = asyncio.create_task(answer_of(edge.service, wanted(10)))
            ups = watched.passed["up"]
            await until(lambda: len(ups) == 1)
            await until(lambda: drafts.sessions)
            await asyncio.sleep(0.02)
            num_ticks = 0
            while not asking.done():
                hand.num_allowed.release()
                num_ticks += 1
                await until(lambda: len(ups) == 1 + num_ticks or asking.done())  # noqa: B023
            assert await asking == expected_answer(PROMPT, 10)
        assert engine.num_nodes_received >= 64
    assert set(ups[1:]) == {PAD_BYTES} and ups[0] % PAD_BYTES == 0
    assert len(ups) - 1 in (num_ticks, num_ticks - 1)


async def test_a_verifier_that_does_not_know_padding_is_sent_drafts_alone() -> None:
    watched = Bytes()
    engine = FakeEngine(replace(INFO, capabilities=("draft-tries",)), patience_s=0.1)
    async with (
        serving(engine, observer=watched) as server,
        edge_at(server.port, TreeDrafts(8, 2), shape=FrameShape(PAD_BYTES, 0.002)) as edge,
    ):
        assert await answer_of(edge.service, wanted(12)) == expected_answer(PROMPT, 12)
        num_bursts = edge.counters.num_verdicts
    assert len(watched.passed["up"]) <= 1 + num_bursts + 1
