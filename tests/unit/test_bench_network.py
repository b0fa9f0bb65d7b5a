"""The bench's networks: named profiles, the shaping law by hand-computed times, and the proxy that follows it."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest
from echo import connection_through, serving_port

from specedge_bench.network import proxy as proxy_module
from specedge_bench.network.control import STOP_TIMEOUT_S, NetworkProcessFailed
from specedge_bench.network.forwarding import ForwardingProxy
from specedge_bench.network.profiles import (
    PROFILES,
    InvalidNetworkProfile,
    NetworkProfile,
    network_profile,
    profile_from_json,
)
from specedge_bench.network.proxy_process import ProxyProcess
from specedge_bench.network.shape import HEADER_BYTES, MAX_BACKLOG_S, Flow, Line, Shape

INSTANT = NetworkProfile("instant", 0.0)


def test_named_profiles_have_their_published_round_trip_times() -> None:
    rtt_ms = {name: profile.rtt_ms for name, profile in PROFILES.items()}
    assert rtt_ms == {"lan": 0.3, "metro": 5.0, "wan": 14.0, "far": 60.0, "home": 30.0}
    home = network_profile("home")
    assert home.up_mbit_s == 20.0 and home.jitter_ms > 0 and home.loss > 0
    assert home.up == Shape(0.015, home.jitter_ms / 1000, 2_500_000.0, home.loss)


@pytest.mark.parametrize("name", ["rtt15", "rtt-15", "15ms", "15 ms", "RTT15", "rtt15ms", "15.0"])
def test_a_round_trip_time_is_a_profile(name: str) -> None:
    assert network_profile(name) == NetworkProfile("rtt15", 15.0)


@pytest.mark.parametrize("name", ["", "moon", "rtt", "rtt-", "-5ms", "15s", "nan"])
def test_an_unknown_profile_names_the_known_ones(name: str) -> None:
    with pytest.raises(InvalidNetworkProfile, match=r"known are lan, metro, wan, far, home, and .* rtt15") as raised:
        network_profile(name)
    assert repr(name) in str(raised.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("rtt_ms", -1.0), ("rtt_ms", 1e5), ("jitter_ms", float("nan")), ("loss", 0.9), ("up_mbit_s", 0.0), ("loss", "x")],
)
def test_a_value_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(InvalidNetworkProfile, match=field):
        NetworkProfile("mine", **{"rtt_ms": 1.0, field: value})  # type: ignore[arg-type]


def test_profiles_survive_json_and_bad_json_is_refused() -> None:
    assert profile_from_json(PROFILES["home"].to_json()) == PROFILES["home"]
    assert profile_from_json("wan") == PROFILES["wan"]
    for text in ('{"name": "x"', '{"name": "x"}', '{"name": "x", "rtt_ms": 1, "speed": 3}'):
        with pytest.raises(InvalidNetworkProfile, match="its fields are name, rtt_ms"):
            profile_from_json(text)


def test_delay_alone_takes_no_rate() -> None:
    flow = Flow(Line(Shape(delay_s=0.01)))
    assert [flow.chunk_arrival_s(10_000, t) for t in (1.0, 1.001, 1.002)] == pytest.approx([1.01, 1.011, 1.012])


def test_a_rate_queues_what_all_flows_send() -> None:
    line = Line(Shape(delay_s=0.5, bytes_per_s=1000.0))
    first, second = Flow(line), Flow(line)
    payload = 1000 - HEADER_BYTES
    assert first.chunk_arrival_s(payload, 10.0) == pytest.approx(11.5)  # 1 s on the line, 0.5 s on the way
    assert second.chunk_arrival_s(payload, 10.0) == pytest.approx(12.5)  # behind the first
    assert first.chunk_arrival_s(payload, 20.0) == pytest.approx(21.5)  # the line is free again


def test_jitter_varies_within_its_bounds_by_seed_and_nothing_overtakes() -> None:
    shape = Shape(delay_s=0.010, jitter_s=0.004)

    def arrivals(seed: int, gap_s: float) -> list[float]:
        flow = Flow(Line(shape, seed))
        return [flow.chunk_arrival_s(100, i * gap_s) for i in range(500)]

    spaced = [arrival - i for i, arrival in enumerate(arrivals(1, 1.0))]
    assert 0.006 <= min(spaced) < 0.0065 and 0.0135 < max(spaced) <= 0.014 + 1e-9
    assert sum(spaced) / len(spaced) == pytest.approx(0.010, abs=0.0004)
    close = arrivals(1, 0.0001)
    assert close == sorted(close)
    assert arrivals(1, 1.0) == arrivals(1, 1.0) != arrivals(2, 1.0)


def test_jitter_larger_than_the_delay_never_arrives_before_it_was_sent() -> None:
    flow = Flow(Line(Shape(delay_s=0.001, jitter_s=1.0), seed=3))
    assert all(flow.chunk_arrival_s(1, 10.0 * i) >= 10.0 * i for i in range(100))


def test_lost_ip_packets_are_gone_at_the_given_rate() -> None:
    flow = Flow(Line(Shape(loss=0.1), seed=5))
    num_lost = sum(flow.packet_arrival_s(100, float(i)) is None for i in range(5000))
    assert 430 < num_lost < 570  # 500, sigma 21


def test_a_full_router_drops_packets_and_empties_at_its_rate() -> None:
    flow = Flow(Line(Shape(bytes_per_s=1000.0)))
    arrivals = [flow.packet_arrival_s(100, 0.0) for _ in range(20)]
    delivered = [arrival for arrival in arrivals if arrival is not None]
    assert delivered == pytest.approx([0.1 * i for i in range(1, len(delivered) + 1)])
    assert delivered[-1] - 0.1 <= MAX_BACKLOG_S + 1e-9 and None in arrivals
    assert flow.packet_arrival_s(100, 5.0) == pytest.approx(5.1)


def test_a_lost_tcp_packet_costs_a_timer_and_holds_up_what_follows() -> None:
    shape, calm = Shape(delay_s=0.01, loss=0.3), Shape(delay_s=0.01)
    line = Line(shape, seed=0)
    flow = Flow(line)
    delays = [flow.chunk_arrival_s(100, 100.0 * i) - 100.0 * i for i in range(2000)]
    # One packet each: in time, or after 0.22 s, or after another 0.44 s, and so on.
    possible = [0.01 + 0.22 * (2**num_losses - 1) for num_losses in range(12)]
    assert all(min(abs(delay - expected) for expected in possible) < 1e-6 for delay in delays)
    late = sum(delay > 0.1 for delay in delays)
    assert 540 < late < 660  # 600, sigma 20
    sent_s = 1e6
    while (held_until_s := flow.chunk_arrival_s(100, sent_s)) < sent_s + 0.2:
        sent_s += 100
    line.shape = calm
    assert flow.chunk_arrival_s(100, sent_s + 0.001) == held_until_s


def test_a_loss_within_a_long_chunk_is_noticed_after_a_round_trip() -> None:
    """Of 40 packets only the last three need the timer, so that most of the late chunks are one round trip late."""
    flow = Flow(Line(Shape(delay_s=0.01, loss=0.005), seed=2))
    delays = [flow.chunk_arrival_s(40 * 1448, 100.0 * i) - 100.0 * i for i in range(1000)]
    late = [delay for delay in delays if delay > 0.011]
    assert 130 < len(late) < 235  # 1000 * (1 - 0.995 ** 40) = 182
    assert sum(delay == pytest.approx(0.03) for delay in late) > 0.8 * len(late)


async def test_the_proxy_serialises_at_the_lines_rate_each_way() -> None:
    loop = asyncio.get_running_loop()
    profile = NetworkProfile("slow", 0.0, up_mbit_s=8.0, down_mbit_s=16.0)  # 1 and 2 MB/s
    data = bytes(range(256)) * 800  # 204,800 B
    async with connection_through(profile) as (proxy, reader, writer):
        started_s = loop.time()
        writer.write(data)
        writer.write_eof()
        assert await reader.read(-1) == data
        assert 0.2 < loop.time() - started_s < 0.5
        assert proxy.num_bytes_up == proxy.num_bytes_down == len(data)


async def test_the_proxy_holds_the_sender_up_when_much_is_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_module, "MAX_BYTES_ON_THE_WAY", 100_000)
    async with connection_through(NetworkProfile("long", 4_000.0)) as (proxy, _, writer):
        writer.write(bytes(50_000_000))
        await asyncio.sleep(0.3)
        assert 0 < proxy.num_bytes_up < 100_000 + 65_536
        assert writer.transport.get_write_buffer_size() > 0


async def test_the_profile_of_a_standing_connection_changes() -> None:
    loop = asyncio.get_running_loop()
    async with connection_through(INSTANT) as (proxy, reader, writer):
        proxy.profile = network_profile("rtt80")
        started_s = loop.time()
        writer.write(b"x")
        await reader.readexactly(1)
        assert loop.time() - started_s >= 0.08


async def test_a_cut_resets_connections_and_new_ones_are_accepted() -> None:
    async with connection_through(INSTANT) as (proxy, reader, writer):
        writer.write(b"x")
        await reader.readexactly(1)
        proxy.cut()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        again, writer_again = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer_again.write(b"y")
        assert await again.readexactly(1) == b"y"
        writer_again.transport.abort()


class CuttingAtOnce(ForwardingProxy):
    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super()._accept(reader, writer)
        self.cut()


async def test_a_connection_cut_before_it_was_served_is_closed() -> None:
    proxy = CuttingAtOnce(9)
    reader, writer = await asyncio.open_connection("127.0.0.1", await proxy.start())
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        async with asyncio.timeout(5):
            await reader.readexactly(1)
    writer.transport.abort()
    await proxy.stop()
    await asyncio.sleep(0.01)


async def test_the_proxy_process_shapes_counts_and_changes_its_profile() -> None:
    loop = asyncio.get_running_loop()
    async with serving_port() as port:
        proxy = await ProxyProcess.start(port, network_profile("rtt100"))
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)

        async def round_trip_s() -> float:
            started_s = loop.time()
            writer.write(b"0123456789")
            await reader.readexactly(10)
            return loop.time() - started_s

        assert await round_trip_s() >= 0.1
        await proxy.set_profile(INSTANT)
        assert min([await round_trip_s() for _ in range(5)]) < 0.05
        assert await proxy.counts() == (60, 60)
        stopped_s = loop.time()
        await proxy.stop()
        assert loop.time() - stopped_s < STOP_TIMEOUT_S, "it ends by itself, a standing connection notwithstanding"
        writer.transport.abort()
        with pytest.raises(NetworkProcessFailed, match="has ended"):
            await proxy.counts()


async def test_an_answer_nobody_waited_for_is_not_taken_for_the_next() -> None:
    proxy = await ProxyProcess.start(9, INSTANT)
    counting = asyncio.create_task(proxy.counts())
    await asyncio.sleep(0)  # its question is sent
    await asyncio.sleep(0)
    counting.cancel()
    await proxy.set_profile(INSTANT)
    assert await proxy.counts() == (0, 0)
    await proxy.stop()


def test_the_proxy_process_ends_with_its_parent_and_refuses_an_unknown_profile() -> None:
    module = "specedge_bench.network.proxy_process"
    command = f"import subprocess, sys, os; p = subprocess.Popen([sys.executable, '-m', '{module}', str(os.getpid()), "
    command += "'9', 'wan'], stdin=0, stdout=2); print(p.pid, flush=True); p.wait()"
    # Both share our pipe as their input, which stays open: only the parent's death can end the proxy.
    parent = subprocess.Popen(
        [sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert parent.stdin and parent.stdout and parent.stderr
    assert int(parent.stderr.readline()) > 0  # it listens
    os.kill(parent.pid, signal.SIGKILL)
    assert parent.stderr.read() == b""  # the end of it comes with the proxy's
    parent.communicate()
    refused = subprocess.run(
        [sys.executable, "-m", module, str(os.getpid()), "9", "moon"], capture_output=True, text=True, timeout=30
    )
    assert refused.returncode == 2 and "unknown network profile 'moon'" in refused.stdout
