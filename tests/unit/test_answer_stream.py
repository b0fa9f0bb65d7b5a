"""The edge's small parts around a stream: the committed answer, the buffer, the pauses between attempts."""

import asyncio
from dataclasses import replace

import pytest

from edge_agent.burst_buffer import BurstBuffer
from edge_agent.committed_answer import Burst, BurstStats, CommittedAnswer
from edge_agent.verifier_backoff import Backoff
from edge_agent.verifier_stream import coalesce
from specedge.errors import CapacityExceeded, ProtocolError
from specedge.sampling import SamplingParams
from specedge.wire.messages import DraftNodes, SessionOpened, TokenLogprob, Verdict


def test_verdicts_continue_the_answer() -> None:
    answer = CommittedAnswer(num_prompt_tokens=10)
    burst = answer.append(Verdict(10, (5, 6), "", 100, 200, 7, 1))
    assert burst == Burst((5, 6), "", 1, BurstStats(100, 200, 7))
    answer.append(Verdict(12, (7,), "stop"))
    assert answer.token_ids == [5, 6, 7]
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize("position", [9, 11, 0])
def test_a_verdict_with_a_gap_or_an_overlap_is_refused_and_changes_nothing(position: int) -> None:
    answer = CommittedAnswer(num_prompt_tokens=10)
    with pytest.raises(ProtocolError, match=f"begins at position {position}, the answer goes on at 10"):
        answer.append(Verdict(position, (5,), "stop"))
    assert answer.token_ids == []
    assert answer.finish_reason == ""


def test_nothing_follows_the_end() -> None:
    answer = CommittedAnswer(num_prompt_tokens=1)
    answer.append(Verdict(1, (5,), "length"))
    with pytest.raises(ProtocolError, match="follows the end"):
        answer.append(Verdict(2, (6,)))


def test_pauses_double_up_to_the_longest_and_are_shortened_by_at_most_a_half() -> None:
    backoff = Backoff(first_s=0.1, max_s=0.5)
    for full_s in (0.1, 0.2, 0.4, 0.5, 0.5):
        assert full_s / 2 <= backoff.next_s() <= full_s
    backoff.reset()
    assert backoff.next_s() <= 0.1


def test_queued_nodes_leave_together_in_order() -> None:
    parts = [DraftNodes([1, 2], [~4, 0], [-1.0, -2.0]), DraftNodes([3], [1], [-3.0])]
    assert coalesce(parts, 6) == DraftNodes([1, 2, 3], [~4, 0, 1], [-1.0, -2.0, -3.0], 6)


async def test_the_buffer_gives_what_was_put_and_then_the_error() -> None:
    buffer: BurstBuffer[int] = BurstBuffer(4)
    buffer.start()
    await buffer.wait_started()
    buffer.put(1)
    buffer.put(2)
    buffer.fail(CapacityExceeded("full"))
    received = []
    with pytest.raises(CapacityExceeded):
        async for item in buffer.bursts():
            received.append(item)
    assert received == [1, 2]


async def test_an_error_before_the_start_reaches_who_waits_for_it() -> None:
    buffer: BurstBuffer[int] = BurstBuffer(4)
    waiting = asyncio.create_task(buffer.wait_started())
    await asyncio.sleep(0)
    buffer.fail(CapacityExceeded("full"))
    with pytest.raises(CapacityExceeded):
        await waiting


async def test_there_is_room_again_when_half_is_read() -> None:
    buffer: BurstBuffer[int] = BurstBuffer(4)
    for item in range(4):
        assert not buffer.is_full
        buffer.put(item)
    assert buffer.is_full
    room = asyncio.create_task(buffer.wait_room())
    bursts = buffer.bursts()
    await anext(bursts)
    await asyncio.sleep(0)
    assert not room.done(), "one free place must not start the producer again"
    await anext(bursts)
    await asyncio.wait_for(room, 1)
    buffer.finish()
    assert [item async for item in bursts] == [2, 3]


def test_log_probabilities_of_a_prompt_are_asked_for_until_told_and_come_with_the_first_burst() -> None:
    sampling = SamplingParams(num_logprobs=0, num_prompt_logprobs=1)
    told = (TokenLogprob(-1.0, (4,), (-0.5,)), TokenLogprob(-2.0, (5,), (-0.25,)))
    answer = CommittedAnswer(3, sampling)
    assert answer.remaining_sampling == sampling
    with pytest.raises(ProtocolError, match="0 tokens of a prompt of 3"):
        answer.opened(SessionOpened(0, 64))
    answer.opened(SessionOpened(0, 64, prompt_logprobs=told))
    assert answer.remaining_sampling == replace(sampling, num_prompt_logprobs=None)
    answer.opened(SessionOpened(3, 64))  # again, after a broken stream
    own = (TokenLogprob(-3.0),)
    assert answer.append(Verdict(3, (9,), logprobs=own)) == Burst(
        (9,), "", 0, BurstStats(num_cached_tokens=3), own, told
    )
    assert answer.append(Verdict(4, (9,), logprobs=own)).prompt_logprobs == ()


def test_tokens_without_the_log_probabilities_that_were_asked_for_are_refused() -> None:
    answer = CommittedAnswer(3, SamplingParams(num_logprobs=0))
    with pytest.raises(ProtocolError, match="of 1 of 2 tokens"):
        answer.append(Verdict(3, (9, 8), logprobs=(TokenLogprob(-3.0),)))
    assert answer.token_ids == []
