"""The codec: sizes on the wire, limits, defaults of fields left out, and names in its errors."""

import contextlib
from dataclasses import replace
from random import Random

import grpc
import pytest

from specedge.errors import (
    CapacityExceeded,
    EngineDead,
    InvalidRequest,
    ModelLoadError,
    OutOfBlocks,
    ProtocolError,
    SpecEdgeError,
    VerifierUnavailable,
)
from specedge.sampling import SamplingParams
from specedge.verification.v1 import verification_pb2 as pb
from specedge.wire import codec
from specedge.wire.channel import FRAMING_BYTES, client_options, is_loopback, server_options
from specedge.wire.draft_codec import DraftEncoder
from specedge.wire.messages import DefaultSampling, DraftNodes, OpenSession, ServerInfo, SessionOpened, Verdict
from specedge.wire.status import from_status, to_status

VOCAB_SIZE = 151_936
INFO = ServerInfo("target", "fp", VOCAB_SIZE, 4096, 256, (7, 9), 8, "1.2", default_sampling=DefaultSampling(top_k=20))


def tree(num_nodes: int, first_number: int = 0, anchor: int = 30_000) -> DraftNodes:
    """A tree in arrival order, with ids from the top of a large vocabulary."""
    random = Random(3)
    parents = [~anchor if i < 4 else first_number + random.randrange(i) for i in range(num_nodes)]
    token_ids = [random.randrange(VOCAB_SIZE - 50_000, VOCAB_SIZE) for _ in range(num_nodes)]
    return DraftNodes(token_ids, parents, [-random.uniform(0, 8) for _ in range(num_nodes)], num_verdicts_seen=5_000)


def test_a_tree_of_32_nodes_takes_300_bytes_late_in_a_long_session() -> None:
    encoder = DraftEncoder()
    encoder.num_nodes = 1_000_000
    (request,) = encoder.encode(tree(32, first_number=1_000_000))
    num_bytes = request.ByteSize() + FRAMING_BYTES
    print(f"32 nodes: {num_bytes} B")
    assert num_bytes <= 300


def test_four_messages_of_twelve_nodes_take_1_kb() -> None:
    encoder = DraftEncoder()
    num_bytes = 0
    for index in range(4):
        (request,) = encoder.encode(tree(12, first_number=12 * index))
        num_bytes += request.ByteSize() + FRAMING_BYTES
    print(f"4 x 12 nodes: {num_bytes} B")
    assert num_bytes <= 1000


def test_a_verdict_takes_100_bytes_with_ten_tokens_and_all_hints() -> None:
    verdict = Verdict(30_000, tuple(range(VOCAB_SIZE - 10, VOCAB_SIZE)), "stop", 3_000_000, 3_000_000, 300, 9, 64)
    num_bytes = codec.encode_response(verdict).ByteSize() + FRAMING_BYTES
    print(f"verdict of 10 tokens: {num_bytes} B")
    assert num_bytes <= 100


def test_a_message_has_one_anchor_and_no_more_nodes_than_allowed() -> None:
    nodes = DraftNodes([1, 2, 3, 4, 5, 6], [~10, 0, ~10, ~11, 3, ~10], [0.0] * 6)
    sizes = [len(request.draft_nodes.token_ids) for request in DraftEncoder(max_nodes_per_message=2).encode(nodes)]
    anchors = [request.draft_nodes.anchor for request in DraftEncoder().encode(nodes)]
    assert sizes == [2, 1, 2, 1]
    assert anchors == [10, 11, 10]
    assert DraftEncoder().encode(DraftNodes([], [], [])) == []


def test_fields_left_out_take_their_documented_defaults() -> None:
    request = pb.GenerateRequest(open=pb.OpenSession(protocol_version=1, prompt_ids=[5]))
    opening = codec.decode_open(request, VOCAB_SIZE)
    assert opening == OpenSession("", (5,), (), SamplingParams(), "")
    assert opening.system == "specedge"


@pytest.mark.parametrize(
    ("sent_s", "arrives_s"), [(None, None), (0.0321, 0.0321), (0.0, 1e-6), (1e9, (2**32 - 1) / 1e6)]
)
def test_a_round_trip_that_is_known_arrives_as_one(sent_s: float | None, arrives_s: float | None) -> None:
    opening = OpenSession("", (5,), (), SamplingParams(), "", round_trip_s=sent_s)
    assert codec.decode_open(codec.encode_open(opening), 100).round_trip_s == pytest.approx(arrives_s)


def test_a_salt_has_its_bound() -> None:
    request = pb.GenerateRequest(open=pb.OpenSession(protocol_version=1, prompt_ids=[5], cache_salt=b"s" * 65))
    with pytest.raises(InvalidRequest, match="cache_salt has 65 bytes, at most 64"):
        codec.decode_open(request, VOCAB_SIZE)


def test_server_info_comes_back_as_it_was() -> None:
    assert codec.decode_server_info(codec.encode_server_info(INFO)) == INFO


def test_server_info_of_another_version_or_without_limits_is_refused() -> None:
    with pytest.raises(ProtocolError, match="speaks protocol version 7, this edge only 1"):
        codec.decode_server_info(codec.encode_server_info(replace(INFO, protocol_version=7)))
    with pytest.raises(ProtocolError, match="vocab_size is 0, at least 1"):
        codec.decode_server_info(codec.encode_server_info(replace(INFO, vocab_size=0)))


def test_a_verdict_must_say_something() -> None:
    assert codec.decode_response(codec.encode_response(Verdict(5, (), "length")), 10) == Verdict(5, (), "length")
    for response, details in (
        (codec.encode_response(Verdict(5, ())), "commits no token and does not end"),
        (codec.encode_response(Verdict(5, (10,))), "token_ids\\[0\\] is 10, outside the vocabulary of 10"),
        (pb.GenerateResponse(), "neither SessionOpened nor Verdict"),
    ):
        with pytest.raises(ProtocolError, match=details):
            codec.decode_response(response, 10)


@pytest.mark.parametrize(
    ("num_values", "top_ids", "details"),
    [
        (3, [], None),
        (3, [1, 2], None),
        (4, [1, 2], None),
        (5, [1, 2], "5 values and 2 top_ids, which fit no tokens"),
        (2, [1, 2], "2 values and 2 top_ids"),
        (0, [1], "0 values and 1 top_ids"),
        (2, [10], r"top_ids\[0\] is 10, outside the vocabulary of 10"),
    ],
)
def test_malformed_log_probabilities_are_refused(num_values: int, top_ids: list[int], details: str | None) -> None:
    response = codec.encode_response(Verdict(5, (1,)))
    response.verdict.logprobs.values.extend([-1.0] * num_values)
    response.verdict.logprobs.top_ids.extend(top_ids)
    with contextlib.nullcontext() if details is None else pytest.raises(ProtocolError, match=details):
        verdict = codec.decode_response(response, 10)
        assert isinstance(verdict, Verdict)
        assert [len(token.top_ids) for token in verdict.logprobs] == [len(top_ids) // (num_values - len(top_ids))] * (
            num_values - len(top_ids)
        )


def test_times_beyond_32_bits_are_cut_off() -> None:
    verdict = codec.decode_response(codec.encode_response(Verdict(0, (1,), queue_us=2**40, step_us=2**33)), 10)
    assert isinstance(verdict, Verdict)
    assert (verdict.queue_us, verdict.step_us) == (2**32 - 1, 2**32 - 1)


def test_unknown_fields_of_a_newer_peer_are_ignored() -> None:
    raw = codec.encode_response(SessionOpened(3, 256)).SerializeToString() + b"\xfa\x07\x03new"
    assert codec.decode_response(pb.GenerateResponse.FromString(raw), 10) == SessionOpened(3, 256)


ERRORS: list[tuple[SpecEdgeError, grpc.StatusCode, type[SpecEdgeError]]] = [
    (InvalidRequest("bad", "top_p"), grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
    (InvalidRequest("bad"), grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
    (ProtocolError("bad"), grpc.StatusCode.INVALID_ARGUMENT, ProtocolError),
    (CapacityExceeded("full", 2.25), grpc.StatusCode.RESOURCE_EXHAUSTED, CapacityExceeded),
    (ModelLoadError("differ"), grpc.StatusCode.FAILED_PRECONDITION, ModelLoadError),
    (VerifierUnavailable("away", 0.5), grpc.StatusCode.UNAVAILABLE, VerifierUnavailable),
    (EngineDead("dead"), grpc.StatusCode.UNAVAILABLE, VerifierUnavailable),
    (OutOfBlocks("blocks"), grpc.StatusCode.INTERNAL, VerifierUnavailable),
]


@pytest.mark.parametrize(("error", "code", "arrives_as"), ERRORS)
def test_errors_cross_the_border(error: SpecEdgeError, code: grpc.StatusCode, arrives_as: type[SpecEdgeError]) -> None:
    status = to_status(error)
    assert status.code is code
    arrived = from_status(status.code, status.details, status.metadata)
    assert type(arrived) is arrives_as
    assert str(error) in str(arrived)
    for name in ("param", "retry_after_s"):
        if type(arrived) is type(error):
            assert getattr(arrived, name, None) == getattr(error, name, None)


def test_an_unreadable_retry_after_is_not_trusted() -> None:
    for text in ("-5", "soon", "", "1e9"):
        arrived = from_status(grpc.StatusCode.RESOURCE_EXHAUSTED, None, (("retry-after-ms", text),))
        assert isinstance(arrived, CapacityExceeded)
        assert arrived.retry_after_s == 1.0
        assert str(arrived) == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:5", True),
        ("localhost:5", True),
        ("[::1]:5", True),
        ("10.0.0.1:5", False),
        ("verifier.example:5", False),
    ],
)
def test_a_proxy_from_the_environment_is_used_for_remote_verifiers_only(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected
    assert dict(client_options(address))["grpc.enable_http_proxy"] == (not expected)


def test_ports_are_not_shared_and_messages_are_capped() -> None:
    options = dict(server_options())
    assert options["grpc.so_reuseport"] == 0
    assert options["grpc.max_receive_message_length"] == 16 * 1024 * 1024
