"""Whatever the codec writes it reads back, and whatever bytes arrive it either reads or refuses."""

import math
from typing import Any

from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from specedge.errors import InvalidRequest, ProtocolError
from specedge.grammar.spec import GRAMMAR_KINDS, GrammarSpec
from specedge.sampling import SamplingParams
from specedge.verification.v1 import verification_pb2 as pb
from specedge.wire import codec
from specedge.wire.draft_codec import DraftDecoder, DraftEncoder, encode_scores
from specedge.wire.messages import DraftNodes, OpenSession, SessionOpened, TokenLogprob, Verdict
from specedge.wire.status import from_status, to_status

VOCAB_SIZE = 152_000
MAX_NODES = 24

token_ids = st.integers(0, VOCAB_SIZE - 1)
counts = st.integers(0, 2**32 - 1)
names = st.text(max_size=40).filter(lambda text: text.isprintable())
penalties = st.floats(-2, 2)

grammars = st.builds(GrammarSpec, st.sampled_from(GRAMMAR_KINDS), st.text(), st.text(max_size=64))
samplings = st.builds(
    SamplingParams,
    temperature=st.floats(0, 2),
    top_p=st.floats(0, 1, exclude_min=True),
    top_k=st.integers(0, VOCAB_SIZE),
    min_p=st.floats(0, 1),
    presence_penalty=penalties,
    frequency_penalty=penalties,
    repetition_penalty=st.floats(0.01, 10),
    logit_bias=st.dictionaries(token_ids, st.floats(-100, 100), max_size=4).map(lambda bias: tuple(bias.items())),
    seed=st.integers(0, 2**64 - 1),
    max_tokens=st.integers(100, 2**32 - 1),
    min_tokens=st.integers(0, 100),
    ignore_eos=st.booleans(),
    stop_token_ids=st.lists(token_ids, max_size=4).map(tuple),
    num_logprobs=st.none() | st.integers(0, 20),
    num_prompt_logprobs=st.none() | st.integers(0, 20),
    bad_words=st.lists(st.lists(token_ids, min_size=1, max_size=4).map(tuple), max_size=4).map(tuple),
    allowed_token_ids=st.lists(token_ids, max_size=8).map(tuple),
    grammar=st.none() | grammars,
)

openings = st.builds(
    OpenSession,
    request_id=names,
    prompt_ids=st.lists(token_ids, min_size=1, max_size=50).map(tuple),
    committed_ids=st.lists(token_ids, max_size=50).map(tuple),
    sampling=samplings,
    tokenizer_fingerprint=names,
    drafter_id=names,
    system=st.sampled_from(["specedge", "autoregressive"]),
    priority=st.integers(-(2**31), 2**31 - 1),
    cache_salt=st.binary(max_size=64),
)


@st.composite
def logprobs(draw: st.DrawFn, num_tokens: int) -> tuple[TokenLogprob, ...]:
    """Of consecutive tokens, with equally many best ones each."""
    num_top = draw(st.integers(0, 3))
    value = st.floats(max_value=0, width=32)

    def many(element: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
        return st.lists(element, min_size=num_top, max_size=num_top).map(tuple)

    return tuple(TokenLogprob(draw(value), draw(many(token_ids)), draw(many(value))) for _ in range(num_tokens))


verdicts = st.builds(
    Verdict,
    first_position=counts,
    token_ids=st.lists(token_ids, min_size=1, max_size=20).map(tuple),
    logprobs=st.integers(0, 5).flatmap(logprobs),
    finish_reason=st.sampled_from(["", "stop", "length"]),
    queue_us=counts,
    step_us=counts,
    num_nodes_verified=counts,
    num_accepted=counts,
    lead_tokens=counts,
)

openeds = st.builds(
    SessionOpened,
    num_cached_tokens=counts,
    max_live_nodes=counts,
    max_nodes_per_message=counts,
    prompt_logprobs=st.integers(0, 5).flatmap(logprobs),
)


@st.composite
def node_batches(draw: st.DrawFn) -> list[DraftNodes]:
    """What a drafter might send over one stream: parents are any earlier number or any committed position."""
    batches, num_nodes = [], 0
    for size in draw(st.lists(st.integers(0, 40), min_size=1, max_size=4)):
        parents = []
        for number in range(num_nodes, num_nodes + size):
            parents.append(draw(st.integers(-5, number - 1) if number else st.integers(-5, -1)))
        num_nodes += size
        scores = draw(st.lists(st.integers(-255, 0), min_size=size, max_size=size))
        tokens = draw(st.lists(token_ids, min_size=size, max_size=size))
        batches.append(DraftNodes(tokens, parents, [score / 16 for score in scores], draw(st.integers(0, 9))))
    return batches


def over_the_wire(request: pb.GenerateRequest) -> pb.GenerateRequest:
    return pb.GenerateRequest.FromString(request.SerializeToString())


@given(openings)
@settings(max_examples=150)
def test_an_opening_comes_back_as_it_was(opening: OpenSession) -> None:
    assert codec.decode_open(over_the_wire(codec.encode_open(opening)), VOCAB_SIZE) == opening


@given(verdicts | openeds)
@settings(max_examples=150)
def test_a_response_comes_back_as_it_was(message: Verdict | SessionOpened) -> None:
    raw = codec.encode_response(message).SerializeToString()
    assert codec.decode_response(pb.GenerateResponse.FromString(raw), VOCAB_SIZE) == message


@given(node_batches())
@settings(max_examples=150)
def test_nodes_come_back_in_order_however_they_are_split_into_messages(batches: list[DraftNodes]) -> None:
    encoder, decoder = DraftEncoder(MAX_NODES), DraftDecoder(VOCAB_SIZE, MAX_NODES)
    for batch in batches:
        received = [decoder.decode(over_the_wire(request), 9) for request in encoder.encode(batch)]
        assert all(0 < len(part.token_ids) <= MAX_NODES for part in received)
        assert [token for part in received for token in part.token_ids] == batch.token_ids
        assert [parent for part in received for parent in part.parents] == batch.parents
        assert [score for part in received for score in part.scores] == batch.scores
        assert {part.num_verdicts_seen for part in received} <= {batch.num_verdicts_seen}
    assert encoder.num_nodes == decoder.num_nodes == sum(len(batch.token_ids) for batch in batches)


@given(st.lists(st.floats(max_value=0.0) | st.just(float("nan")), max_size=MAX_NODES))
def test_any_score_fits_into_a_byte_and_is_at_most_half_a_step_off(scores: list[float]) -> None:
    nodes = DraftNodes([1] * len(scores), [~0] * len(scores), scores)
    decoder = DraftDecoder(VOCAB_SIZE)
    received = [score for request in DraftEncoder().encode(nodes) for score in decoder.decode(request, 0).scores]
    for sent, arrived in zip(scores, received, strict=True):
        assert abs(arrived - max(sent, -255 / 16)) <= 1 / 32 if sent == sent else arrived == -255 / 16


messages = st.one_of(
    st.binary(max_size=60),
    openings.map(lambda opening: codec.encode_open(opening).SerializeToString()),
    node_batches().map(lambda batches: b"".join(r.SerializeToString() for r in DraftEncoder().encode(batches[0]))),
)


@given(messages, st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4), st.integers(0, 30))
@settings(max_examples=150)
def test_damaged_bytes_are_read_or_refused_and_nothing_else(
    raw: bytes, changes: list[tuple[int, int]], num_cut: int
) -> None:
    damaged = bytearray(raw[: max(len(raw) - num_cut, 0)])
    for index, byte in changes:
        if index < len(damaged):
            damaged[index] = byte
    try:
        request = pb.GenerateRequest.FromString(bytes(damaged))
    except DecodeError:
        return
    for read in (
        lambda: codec.decode_open(request, VOCAB_SIZE),
        lambda: DraftDecoder(VOCAB_SIZE, MAX_NODES).decode(request, 0),
    ):
        try:
            read()
        except (ProtocolError, InvalidRequest) as error:
            status = to_status(error)
            assert type(from_status(status.code, status.details, status.metadata)) is type(error)


@given(
    st.lists(st.floats(max_value=0), min_size=1, max_size=MAX_NODES)
    | st.lists(st.integers(-600, 0).map(lambda n: n / 32))
)
def test_scores_are_rounded_to_even_bytes_at_halves(scores: list[float]) -> None:
    expected = [round(max(0.0, min(255.0, score * -16.0))) for score in scores]
    assert list(encode_scores(scores)) == expected


def test_a_score_that_is_no_number_is_the_lowest() -> None:
    assert list(encode_scores([float("nan"), -math.inf, 0.5, math.inf])) == [255, 255, 0, 0]


def test_nodes_under_two_anchors_take_two_messages() -> None:
    nodes = DraftNodes([1, 2, 3, 4], [~5, 0, ~6, 2], [0.0, -1.0, -2.0, -3.0])
    requests = DraftEncoder().encode(nodes)
    assert [list(request.draft_nodes.parent_deltas) for request in requests] == [[0, 1], [0, 1]]
    assert [request.draft_nodes.anchor for request in requests] == [5, 6]
    assert DraftEncoder().encode(DraftNodes([], [], [])) == []
