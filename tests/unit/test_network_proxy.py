"""The network proxy of which nothing but a delay is asked: what it adds, what it must not take, what it counts."""

import asyncio

import pytest
from echo import connection_through, echo

from specedge_bench.network.profiles import NetworkProfile
from specedge_bench.network.proxy import NetworkProxy


def delayed(rtt_s: float) -> NetworkProfile:
    return NetworkProfile("delayed", rtt_s * 1000)


@pytest.mark.parametrize("rtt_s", [0.0, 0.05])
async def test_bytes_arrive_unchanged_and_are_counted_each_way(rtt_s: float) -> None:
    data = bytes(range(256)) * 4096  # a megabyte
    async with connection_through(delayed(rtt_s)) as (proxy, reader, writer):
        writer.write(data)
        writer.write_eof()
        assert await reader.read(-1) == data
        assert proxy.num_bytes_up == proxy.num_bytes_down == len(data)


async def test_a_round_trip_takes_at_least_the_added_time() -> None:
    loop = asyncio.get_running_loop()
    async with connection_through(delayed(0.08)) as (_, reader, writer):
        started_s = loop.time()
        writer.write(b"x")
        await reader.readexactly(1)
        assert loop.time() - started_s >= 0.08


async def test_delays_of_successive_chunks_overlap() -> None:
    loop = asyncio.get_running_loop()
    rtt_s, num_chunks = 0.2, 20
    async with connection_through(delayed(rtt_s)) as (_, reader, writer):
        started_s = loop.time()
        for _ in range(num_chunks):
            writer.write(b"0123456789")
            await asyncio.sleep(0.002)  # so that chunks are read one by one
        await reader.readexactly(10 * num_chunks)
        assert loop.time() - started_s < num_chunks * rtt_s / 4, "one after the other they would take 20 round trips"


async def test_a_changed_delay_holds_for_what_arrives_later_and_nothing_overtakes() -> None:
    async with connection_through(delayed(0.2)) as (proxy, reader, writer):
        writer.write(b"slow")
        await asyncio.sleep(0.02)
        proxy.profile = delayed(0.0)
        writer.write(b"fast")
        assert await reader.readexactly(8) == b"slowfast"


async def test_a_target_that_is_away_ends_the_connection() -> None:
    unused = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = unused.sockets[0].getsockname()[1]
    unused.close()
    await unused.wait_closed()
    proxy = NetworkProxy(port, delayed(0.0))
    reader, writer = await asyncio.open_connection("127.0.0.1", await proxy.start())
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    writer.transport.abort()
    await proxy.stop()
    await asyncio.sleep(0.01)


async def test_a_reset_by_the_target_reaches_the_client() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.transport.abort()

    async with connection_through(delayed(0.01), reset) as (_, reader, writer):
        writer.write(b"x")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)


async def test_stopping_closes_connections_that_stand() -> None:
    async with connection_through(delayed(0.5)) as (proxy, reader, writer):
        writer.write(b"x")
        await asyncio.sleep(0.01)
        await proxy.stop()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
