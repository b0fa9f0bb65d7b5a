"""Frames between processes over a real socket pair."""

import asyncio
import socket
from collections.abc import Iterator

import pytest
from fakes import until

from specedge_verifier.frame_link import FrameLink


class End:
    """One end: what it heard and how it ended."""

    def __init__(self, connection: socket.socket, *, waits: bool = False, max_unsent_bytes: int = 2**26) -> None:
        self.heard: list[object] = []
        self.reasons: list[str] = []
        self.link = FrameLink(
            connection,
            {"say": self.heard.append, "break": self._break},
            self.reasons.append,
            waits=waits,
            max_unsent_bytes=max_unsent_bytes,
        )

    def _break(self) -> None:
        raise ValueError("this cannot be done")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair()
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    yield ends
    for end in ends:
        end.close()


async def test_messages_arrive_in_order_whatever_their_size_and_those_of_a_turn_together(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    first, second = End(pair[0]), End(pair[1])
    said = [0, b"x" * 300_000, "y", [1, 2, 3], b"z" * 70_000, *range(100)]
    for thing in said:
        first.link.put(("say", thing))
    second.link.put(("say", "meanwhile"))
    await until(lambda: len(second.heard) == len(said))
    assert second.heard == said
    assert first.heard == ["meanwhile"]
    first.link.put(("say", "last"))
    first.link.finish()
    await until(lambda: second.reasons)
    assert second.heard[-1] == "last"
    assert second.reasons == ["it has closed its end"]
    assert first.reasons == [], "whoever finishes need not be told"
    second.link.put(("say", "to nobody"))
    await asyncio.sleep(0)


async def test_a_message_that_cannot_be_carried_out_ends_the_link(
    pair: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = End(pair[0]), End(pair[1])
    for message in (("say", 1), ("break",), ("say", 2)):
        first.link.put(message)
    await until(lambda: second.reasons)
    assert second.heard == [1]
    assert "this cannot be done" in second.reasons[0]
    assert "could not be carried out" in caplog.text
    await until(lambda: first.reasons)


async def test_an_end_that_does_not_read_is_lost_once_too_much_waits(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    first = End(pair[0], max_unsent_bytes=100_000)
    for _ in range(4):
        first.link.put(("say", b"x" * 40_000))
        await asyncio.sleep(0)
    assert first.reasons == ["it has left more than 100000 bytes unread"]


async def test_an_end_that_waits_is_held_up_until_the_other_reads(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    first = End(pair[0], waits=True, max_unsent_bytes=100_000)
    received = bytearray()

    def read() -> None:
        while len(received) < 400_000:
            received.extend(pair[1].recv(65_536))

    pair[1].setblocking(True)
    reading = asyncio.create_task(asyncio.to_thread(read))
    for _ in range(10):
        first.link.put(("say", b"x" * 40_000))
        await asyncio.sleep(0)
        assert len(first.link._unsent) <= 100_000
    await asyncio.wait_for(reading, 10)
    assert first.reasons == []
    first.link.close()


async def test_an_end_that_waits_for_one_that_dies_is_told(pair: tuple[socket.socket, socket.socket]) -> None:
    first = End(pair[0], waits=True, max_unsent_bytes=1000)
    pair[1].close()
    first.link.put(("say", b"x" * 40_000))
    await until(lambda: first.reasons)
    assert len(first.reasons) == 1
