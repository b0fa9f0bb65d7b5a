"""Lengths and times of frames: what goes in must not be told by what comes out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from specedge.verification.v1 import verification_pb2 as pb
from specedge.wire.shaping import UNSHAPED, Cadence, FrameShape, is_padding
from specedge_verifier.settings import VerifierSettings


def verdict(num_tokens: int, token_id: int = 100_000) -> pb.GenerateResponse:
    return pb.GenerateResponse(verdict=pb.Verdict(token_ids=[token_id] * num_tokens, first_position=700))


@given(num_tokens=st.integers(0, 1500), token_id=st.integers(0, 2**20), multiple=st.integers(64, 3000))
def test_any_message_becomes_a_multiple_and_stays_the_same_message(
    num_tokens: int, token_id: int, multiple: int
) -> None:
    message = verdict(num_tokens, token_id)
    plain = message.ByteSize()
    FrameShape(multiple).pad(message)
    assert message.ByteSize() % multiple == 0
    assert plain + 2 <= message.ByteSize() < plain + 2 + multiple
    read = pb.GenerateResponse.FromString(message.SerializeToString())
    assert read.verdict == verdict(num_tokens, token_id).verdict
    assert not is_padding(read)


def test_every_length_below_a_multiple_becomes_that_multiple() -> None:
    lengths = set()
    for num_tokens in range(79):
        message = verdict(num_tokens)
        FrameShape(256).pad(message)
        lengths.add(message.ByteSize())
    assert lengths == {256}


def test_padding_alone_is_as_long_as_any_message() -> None:
    message = pb.GenerateRequest()
    assert not is_padding(message), "an empty message is none of ours"
    FrameShape(256).pad(message)
    assert is_padding(message) and message.ByteSize() == 256


def test_nothing_is_padded_or_paced_unless_set() -> None:
    message = verdict(3)
    UNSHAPED.pad(message)
    assert message == verdict(3)
    assert UNSHAPED.cadence() is None and UNSHAPED.max_nodes(512) == 512


@pytest.mark.parametrize("multiple", [64, 256, 1024])
def test_a_paced_draft_message_fits_into_one_multiple(multiple: int) -> None:
    shape = FrameShape(multiple, 0.01)
    num_nodes = shape.max_nodes(512)
    nodes = pb.DraftNodes(
        token_ids=[2**21 - 1] * num_nodes, parent_deltas=[2**14 - 1] * num_nodes, scores=bytes(num_nodes)
    )
    nodes.anchor, nodes.num_verdicts_seen = 2**20, 2**20
    request = pb.GenerateRequest(draft_nodes=nodes)
    shape.pad(request)
    assert request.ByteSize() == multiple


class Clock:
    """Time that passes only by sleeping, each time a little longer than asked for, or by hand."""

    def __init__(self, late_s: float) -> None:
        self.now_s = 1000.0
        self._late_s = late_s

    async def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now_s += seconds + self._late_s


@pytest.mark.parametrize("late_s", [0.0, 0.004])
async def test_ticks_are_multiples_of_the_interval_whatever_happened_between(late_s: float) -> None:
    clock = Clock(late_s)
    cadence = Cadence(0.02, lambda: clock.now_s, clock.sleep)
    multiples = []
    for busy_s in (0.0, 0.001, 0.0155, 0.013, 0.05, 0.0, 0.333):
        clock.now_s += busy_s
        await cadence.tick()
        multiples.append((clock.now_s - late_s - 1000.0) / 0.02)
    assert multiples == pytest.approx([round(each) for each in multiples])
    assert len({round(each) for each in multiples}) == len(multiples), "none comes twice"


async def test_what_takes_time_begins_before_the_tick_and_changes_none() -> None:
    clock = Clock(0.0)
    cadence = Cadence(0.02, lambda: clock.now_s, clock.sleep)
    for multiple in (1, 2, 3):
        await cadence.before_tick(0.005)
        assert clock.now_s == pytest.approx(1000.0 + 0.02 * multiple - 0.005)
        await cadence.tick()
        assert clock.now_s == pytest.approx(1000.0 + 0.02 * multiple)
    await cadence.before_tick(0.5)
    assert clock.now_s == pytest.approx(1000.06), "at once"


def test_pacing_needs_padding() -> None:
    with pytest.raises(ValidationError, match="frame_interval_ms is 20 and pad_frames is off"):
        VerifierSettings(frame_interval_ms=20)
    settings = VerifierSettings(frame_interval_ms=20, pad_frames=256)
    assert (settings.pad_frames, settings.frame_interval_ms) == (256, 20)
