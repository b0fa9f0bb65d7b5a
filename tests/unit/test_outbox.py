"""The queue between the engine and a stream's writer."""

import asyncio

import pytest

from specedge.errors import EngineDead, ProtocolError
from specedge.wire.messages import Draining, SessionOpened, Verdict
from specedge_verifier.bridge import MAX_BEHIND_S, MAX_UNSEEN, Outbox


async def test_messages_leave_in_order_and_the_finish_ends_them() -> None:
    outbox = Outbox(max_unsent=4)
    messages = [SessionOpened(0, 8), Verdict(1, (5,)), Verdict(2, (6,), "stop")]
    outbox.opened(messages[0])
    outbox.verdict(messages[1])
    outbox.verdict(messages[2])
    outbox.verdict(Verdict(3, (7,)))
    outbox.failed(EngineDead("too late"))
    assert [await outbox.get(), await outbox.get()] == messages[:2]
    assert outbox.num_verdicts_taken == 1
    assert [await outbox.get(), await outbox.get()] == [messages[2], None]


async def test_an_error_comes_after_what_is_queued_and_the_first_one_counts() -> None:
    outbox = Outbox(max_unsent=4)
    waiting = asyncio.create_task(outbox.get())
    await asyncio.sleep(0)
    outbox.verdict(Verdict(1, (5,)))
    outbox.failed(ProtocolError("first"))
    outbox.failed(EngineDead("second"))
    assert await waiting == Verdict(1, (5,))
    with pytest.raises(ProtocolError, match="first"):
        await outbox.get()


async def test_a_client_that_has_left_is_sent_nothing_more() -> None:
    outbox = Outbox(max_unsent=4)
    outbox.verdict(Verdict(1, (5,)))
    outbox.discard()
    outbox.verdict(Verdict(2, (6,)))
    assert await outbox.get() is None


async def test_congestion_begins_above_the_bound_and_ends_at_half_of_it() -> None:
    outbox = Outbox(max_unsent=4)
    told: list[bool] = []
    outbox.on_congestion = told.append
    congested = []
    for position in range(5):
        outbox.verdict(Verdict(position, (5,)))
        congested.append(outbox.is_congested)
    assert congested == [False] * 4 + [True]
    congested = []
    for _ in range(5):
        await outbox.get()
        congested.append(outbox.is_congested)
    assert congested == [True, True, False, False, False]
    assert told == [True, False]


async def test_the_word_that_it_drains_goes_first_and_is_no_verdict() -> None:
    outbox = Outbox(max_unsent=4)
    outbox.verdict(Verdict(1, (5,)))
    outbox.draining()
    assert [await outbox.get(), outbox.num_verdicts_taken] == [Draining(), 0]
    assert await outbox.get() == Verdict(1, (5,))
    outbox.close()
    outbox.draining()
    assert await outbox.get() is None


class Edge:
    """An outbox whose peer tells what it has processed; the test moves the clock."""

    def __init__(self, round_trip_s: float | None = None) -> None:
        self.now_s = 0.0
        self.changes: list[bool] = []
        self.outbox = Outbox(max_unsent=1000, clock=lambda: self.now_s)
        self.outbox.follow_progress(round_trip_s)
        self.outbox.on_congestion = self.changes.append

    def send(self, num_verdicts: int) -> None:
        for _ in range(num_verdicts):
            self.outbox.verdict(Verdict(1, (5,)))
            self.outbox.take()


def test_a_session_rests_while_its_edge_is_far_behind() -> None:
    edge = Edge()
    edge.send(1)
    edge.outbox.seen(1)
    edge.send(MAX_UNSEEN)
    edge.now_s = 1.1 * MAX_BEHIND_S
    edge.send(1)
    assert edge.changes == [True]
    edge.outbox.seen(1 + MAX_UNSEEN // 2)
    assert edge.changes == [True], "half of the bound is still lacking"
    edge.outbox.seen(2 + MAX_UNSEEN // 2)
    assert edge.changes == [True, False]


@pytest.mark.parametrize("line_ms", [150, 900])
def test_a_long_line_is_not_far_behind(line_ms: int) -> None:
    edge = Edge()
    for number in range(2000):  # a verdict every 5 ms
        edge.now_s += 0.005
        edge.send(1)
        edge.outbox.seen(max(0, number - line_ms // 5))
    assert edge.changes == []
    edge.now_s += 1.1 * MAX_BEHIND_S
    edge.send(1)
    assert edge.changes == [True], "and now it is"


def test_a_backlog_from_before_the_session_is_not_taken_for_a_long_line() -> None:
    edge = Edge(round_trip_s=0.001)
    for number in range(1000):  # a verdict every 5 ms, and the edge is behind by 300 ms from the first one on
        edge.now_s += 0.005
        if edge.outbox.is_congested:
            break
        edge.send(1)
        edge.outbox.seen(max(0, number - 60))
    assert edge.changes == [True]
    assert edge.now_s <= 1.5 * MAX_BEHIND_S, "before the first word of it"


@pytest.mark.parametrize("line_ms", [150, 900])
def test_a_long_line_that_is_known_is_not_far_behind(line_ms: int) -> None:
    edge = Edge(round_trip_s=line_ms / 1000)
    for number in range(1000):
        edge.now_s += 0.005
        edge.send(1)
        edge.outbox.seen(max(0, number - line_ms // 5))
    assert edge.changes == []


def test_an_edge_that_promises_to_tell_and_never_does_is_not_waited_for() -> None:
    edge = Edge()
    for _ in range(10 * MAX_UNSEEN):
        edge.now_s += 1.0
        edge.send(1)
    assert edge.changes == []


def test_what_a_peer_says_twice_or_too_early_counts_once() -> None:
    edge = Edge()
    edge.send(4)
    for num_verdicts in (3, 1, 3, 99):
        edge.outbox.seen(num_verdicts)
    edge.now_s = 1.0
    edge.send(MAX_UNSEEN)
    edge.now_s += 1.1 * MAX_BEHIND_S
    edge.send(1)
    assert edge.changes == [True]


def test_a_peer_that_tells_nothing_is_not_waited_for() -> None:
    now = [0.0]
    outbox, changes = Outbox(max_unsent=1000, clock=lambda: now[0]), list[bool]()
    outbox.on_congestion = changes.append
    for _ in range(10 * MAX_UNSEEN):
        now[0] += 1.0
        outbox.verdict(Verdict(1, (5,)))
        outbox.take()
    assert changes == []
