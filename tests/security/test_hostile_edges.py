"""Clients of a verifier that keep to no rule: refused and counted, and a neighbour notices nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from edge_harness import PROMPT, Edge, edge_at, wanted
from fakes import FINGERPRINT, FakeEngine, expected_answer, serving, until
from raw_http2 import (
    CANCEL,
    CONTINUATION,
    DATA,
    END_HEADERS,
    HEADERS,
    OPENED,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    call_headers,
    frame,
    header,
    raw_connection,
)
from tls_support import Authority, link, server_source

from specedge.block_pool import BlockPool
from specedge.sampling import SamplingParams
from specedge.wire import codec
from specedge.wire.channel import MAX_STREAMS, server_options
from specedge.wire.messages import OpenSession
from specedge_verifier.grpc_server import ServerTls, VerifierServer
from specedge_verifier.handshakes import Handshakes
from specedge_verifier.metrics import VerifierMetrics
from specedge_verifier.scheduler import Scheduler, SchedulerLimits
from specedge_verifier.step_time import StepTime

NUM_TOKENS = 150
DEADLINE_S = 20.0


def begin(stream: int) -> bytes:
    return frame(HEADERS, call_headers(), stream=stream, flags=END_HEADERS)


def many_streams(number: int) -> list[bytes]:
    return [begin(2 * index + 1) for index in range(number)]


def rapid_resets(number: int) -> list[bytes]:
    return [begin(stream) + frame(RST_STREAM, CANCEL, stream=stream) for stream in range(1, 2 * number, 2)]


LARGE_HEADERS = call_headers() + b"".join(header(f"x-{number}", "y" * 100) for number in range(300))
REFUSED = "a TLS connection without a call"
CANCELLED, DEADLINE = "CANCELLED", "DEADLINE_EXCEEDED"
FLOODS: dict[str, tuple[list[bytes], str]] = {
    "another protocol": ([b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"], REFUSED),
    "nothing after the preface": ([PREFACE], REFUSED),
    "settings": ([OPENED, *[frame(SETTINGS, b"\x00\x04\x00\x00\xff\xff") * 500] * 60], REFUSED),
    "pings": ([OPENED, *[frame(PING, bytes(8)) * 500] * 60], REFUSED),
    "window updates": ([OPENED, *[frame(WINDOW_UPDATE, (2**31 - 1).to_bytes(4)) * 500] * 20], REFUSED),
    "headers without end": (
        [
            OPENED,
            frame(HEADERS, call_headers(), stream=1),
            *[frame(CONTINUATION, header("a", "b" * 100) * 100, stream=1)] * 200,
        ],
        REFUSED,
    ),
    "large headers": (
        [
            OPENED,
            frame(HEADERS, LARGE_HEADERS[:16_000], stream=1),
            frame(CONTINUATION, LARGE_HEADERS[16_000:], stream=1, flags=END_HEADERS),
        ],
        CANCELLED,
    ),
    "resets": ([OPENED, *rapid_resets(3000)], CANCELLED),
    "a large frame": ([OPENED, begin(1), frame(DATA, bytes(2**22), stream=1)], CANCELLED),
    "a large message announced": (
        [OPENED, begin(1), frame(DATA, b"\x00" + (2**30).to_bytes(4), stream=1)],
        CANCELLED,
    ),
    "empty frames": ([OPENED, begin(1), *[frame(DATA, stream=1) * 500] * 60], CANCELLED),
    "streams": ([OPENED, *many_streams(3 * MAX_STREAMS)], DEADLINE),
    "dribbled messages": (
        [
            OPENED,
            begin(1),
            frame(DATA, b"\x00" + (1000).to_bytes(4), stream=1),
            *[frame(DATA, b"\x0a", stream=1)] * 100,
        ],
        DEADLINE,
    ),
}
"""What a client sends, and as what it is counted."""

OPENING = OpenSession("slow", PROMPT, (), SamplingParams(max_tokens=30), FINGERPRINT)


class Site:
    """A verifier with TLS, what it counts, and a neighbour with a good edge."""

    def __init__(
        self, server: VerifierServer, engine: FakeEngine, metrics: VerifierMetrics, good: Edge, authority: Path
    ) -> None:
        self.server = server
        self.engine = engine
        self.good = good
        self.authority = authority
        self._registry = metrics.registry

    def refused_connections(self) -> float:
        name = "specedge_verifier_tls_connections_total"
        return self._registry.get_sample_value(name, {"outcome": "refused"}) or 0.0

    def rejected(self, reason: str) -> float:
        return self._registry.get_sample_value("specedge_verifier_rejected_sessions_total", {"reason": reason}) or 0.0

    @asynccontextmanager
    async def neighbour(self) -> AsyncIterator[None]:
        """An answer that runs over the time of the block and beyond."""
        async with self.good.service.generate(wanted(NUM_TOKENS)) as bursts, aclosing(bursts):
            tokens = [*(await anext(bursts)).token_ids]
            yield
            async with asyncio.timeout(DEADLINE_S):
                async for burst in bursts:
                    tokens += burst.token_ids
        assert tokens == expected_answer(PROMPT, NUM_TOKENS)
        assert self.good.counters.num_broken == 0


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """Patience is short here, so that nobody waits for it."""
    options = (*server_options(), ("grpc.server_handshake_timeout_ms", 600))
    monkeypatch.setattr("specedge_verifier.grpc_server.server_options", lambda **_: dict(options).items())
    authority = Authority(tmp_path / "ca")
    metrics = VerifierMetrics("demo", Scheduler(BlockPool(8, 4), SchedulerLimits(4, 64, 8), StepTime(64, [(1, 0.01)])))
    handshakes = Handshakes(metrics.registry, patience_s=0.8)
    tls = ServerTls(server_source(authority.files("server", is_server=True)), handshakes)
    engine = FakeEngine(step_s=0.002)
    async with (
        serving(engine, tls=tls, observer=metrics, open_timeout_s=0.4) as server,
        edge_at(server.port, tls=link(authority.file)) as good,
    ):
        yield Site(server, engine, metrics, good, authority.file)


@pytest.mark.parametrize("flood", FLOODS)
async def test_a_flood_is_a_matter_of_its_own_connection(site: Site, flood: str) -> None:
    parts, counter = FLOODS[flood]
    async with site.neighbour(), raw_connection(site.server.port, site.authority) as connection:
        async with asyncio.timeout(DEADLINE_S):
            await connection.send(parts)
            await until(
                lambda: site.refused_connections() if counter == REFUSED else site.rejected(counter), DEADLINE_S
            )
    await until(lambda: site.server.service.num_streams == 0, DEADLINE_S)
    await until(lambda: site.engine.num_sessions == 0, DEADLINE_S)
    assert len(site.engine.opened) == 1, "the neighbour's"


async def test_streams_of_a_connection_are_bounded_and_the_silent_ones_end(site: Site) -> None:
    most = 0
    async with site.neighbour(), raw_connection(site.server.port, site.authority) as connection:
        sending = asyncio.create_task(connection.send([OPENED, *many_streams(3 * MAX_STREAMS)]))
        while not sending.done() or site.rejected("DEADLINE_EXCEEDED") == 0:
            most = max(most, site.server.service.num_streams)
            await asyncio.sleep(0.005)
        await sending
    assert 0 < most <= MAX_STREAMS + 1
    assert site.rejected("DEADLINE_EXCEEDED") > 0


async def test_connections_that_never_become_any_are_closed(site: Site) -> None:
    """Of each kind a few at a time: silent, with TLS byte by byte, without it, and silent after it."""

    async def dribble(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
        reading = asyncio.create_task(reader.read())
        hello = bytes([22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]) + bytes(500)
        parts = {0: [], 1: [hello[at : at + 1] for at in range(500)], 2: [b"GET / HTTP/1.1\r\n\r\n"]}[number % 3]
        try:
            for part in parts:
                if reading.done():
                    break
                writer.write(part)
                await asyncio.sleep(0.02)
            await asyncio.wait({reading})
        finally:
            writer.transport.abort()
        assert isinstance(reading.exception(), ConnectionError | None)

    async def silent_after_tls() -> None:
        async with raw_connection(site.server.port, site.authority) as connection:
            await until(lambda: connection.is_closed, DEADLINE_S)

    async with site.neighbour(), asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*(dribble(number) for number in range(30)), *(silent_after_tls() for _ in range(10)))
        await until(lambda: site.refused_connections() >= 40, DEADLINE_S)
    assert len(site.engine.opened) == 1


async def test_a_session_that_dribbles_its_drafts_takes_no_time_of_others(site: Site) -> None:
    """Messages a byte at a time, after a good opening: the session waits for nothing, and ends with its answer."""
    opening = codec.encode_open(OPENING).SerializeToString()
    message = b"\x00" + len(opening).to_bytes(4) + opening
    async with site.neighbour(), raw_connection(site.server.port, site.authority) as connection:
        await connection.send([OPENED, begin(1), frame(DATA, message, stream=1)])
        await until(lambda: len(site.engine.opened) == 2)
        await connection.send([frame(DATA, bytes(1), stream=1), frame(DATA, (500).to_bytes(4), stream=1)])
        for _ in range(20):
            await connection.send([frame(DATA, b"\x0a", stream=1)])
            await asyncio.sleep(0.005)
        await until(lambda: len(site.engine.closed) >= 1, DEADLINE_S)
    await until(lambda: site.engine.num_sessions == 0, DEADLINE_S)
