"""Two joined network namespaces: what real TCP sees of their shape, and that nothing of them is left."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from specedge_bench.network.namespaces import Namespaces, joined_namespaces, namespaces_available
from specedge_bench.network.profiles import NetworkProfile, network_profile

PORT = 7000
ECHO = f"""
import socket
listener = socket.create_server(("0.0.0.0", {PORT}))
print("up", flush=True)
while True:
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := connection.recv(65536):
        connection.sendall(data)
    connection.close()
"""
# Sends messages of a size and prints the milliseconds until all of each is back.
PING = """
import socket, sys, time
host, port, size, count = sys.argv[1], *map(int, sys.argv[2:])
connection = socket.create_connection((host, port))
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
for _ in range(count):
    started = time.perf_counter()
    connection.sendall(bytes(size))
    left = size
    while left:
        left -= len(connection.recv(min(left, 65536)))
    print((time.perf_counter() - started) * 1000)
"""


@pytest.fixture(scope="module", autouse=True)
def _needs_namespaces() -> None:
    if reason := namespaces_available():
        pytest.skip(reason)


@asynccontextmanager
async def echoing_verifier(profile: NetworkProfile, seed: int = 0) -> AsyncIterator[Namespaces]:
    async with joined_namespaces(profile, [("verifier", PORT)], seed) as namespaces:
        echo = await asyncio.create_subprocess_exec(
            *namespaces.prefix("verifier"), sys.executable, "-c", ECHO, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert echo.stdout and await echo.stdout.readline() == b"up\n"
            yield namespaces
        finally:
            echo.kill()
            await echo.communicate()


async def round_trips_ms(namespaces: Namespaces, size: int, count: int) -> list[float]:
    ping = await asyncio.create_subprocess_exec(
        *namespaces.prefix("edge"),
        *(sys.executable, "-c", PING, namespaces.verifier_address, str(PORT), str(size), str(count)),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await ping.communicate()
    assert ping.returncode == 0
    return [float(line) for line in output.split()]


async def test_tcp_sees_the_round_trip_time_and_a_change_of_it() -> None:
    async with echoing_verifier(network_profile("rtt40")) as namespaces:
        times_ms = await round_trips_ms(namespaces, 100, 15)
        assert 40 <= min(times_ms) < 50  # the quickest one: a busy machine delays others
        num_up, num_down = await namespaces.counts()
        assert 15 * 152 <= num_up < 8000 and 15 * 152 <= num_down < 8000  # 52 bytes of headers a packet
        await namespaces.set_profile(network_profile("lan"))
        assert min(await round_trips_ms(namespaces, 100, 15)) < 10


async def test_tcp_sees_the_rate() -> None:
    profile = NetworkProfile("narrow", 0.0, up_mbit_s=8.0)  # 1 MB/s
    async with echoing_verifier(profile) as namespaces:
        [time_ms] = await round_trips_ms(namespaces, 300_000, 1)
        assert 300 <= time_ms < 1500


async def test_tcp_repeats_what_the_network_loses() -> None:
    async with echoing_verifier(NetworkProfile("lossy", 2.0, loss=0.1), seed=1) as namespaces:
        times_ms = await round_trips_ms(namespaces, 100, 60)
        assert len(times_ms) == 60, "nothing is lost for good"
        assert sum(time_ms > 100 for time_ms in times_ms) >= 2, "the kernel's timer is 200 ms"
        assert min(times_ms) < 20


async def test_a_port_inside_is_reached_from_outside_and_not_at_its_own_address() -> None:
    async with echoing_verifier(network_profile("far")) as namespaces:
        reader, writer = await asyncio.open_connection("127.0.0.1", namespaces.host_port("verifier", PORT))
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()
        await writer.wait_closed()
        assert await namespaces.counts() == (0, 0), "the way in is not the shaped one"


def network_namespace(process: str) -> int:
    return Path("/proc", process, "ns/net").stat().st_ino


def devices() -> str:
    return Path("/proc/net/dev").read_text()


async def test_nothing_is_left_of_them_and_ours_is_untouched() -> None:
    ours = network_namespace("self")
    async with joined_namespaces(network_profile("lan")) as namespaces:
        inside = await asyncio.create_subprocess_exec(
            *namespaces.prefix("edge"), "cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert inside.stdin and inside.stdout
        inside.stdin.write(b"x")
        assert await inside.stdout.readexactly(1) == b"x"  # it has entered
        assert network_namespace(str(inside.pid)) != ours
        assert not {"edge:", "verifier:"} & set(devices().split())
        await inside.communicate(b"")
        holder = next(part for part in namespaces.prefix("edge") if part.startswith("--net=/proc/")).split("/")[2]
        assert network_namespace(holder) != ours
    with pytest.raises(FileNotFoundError):
        network_namespace(holder)
    assert network_namespace("self") == ours
