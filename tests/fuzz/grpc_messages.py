"""Streams that no edge would send: legal messages with hostile fields, in any order, and bytes that are no messages."""

from random import Random
from typing import Any

from fuzz import values
from fuzz.inputs import Stream
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from specedge.verification.v1 import verification_pb2 as pb

VOCAB_SIZE = 4096
PROMPT = (5, 17, 400, 31, 1200)
_NUM_BITS = {
    FieldDescriptor.TYPE_UINT32: (0, 32),
    FieldDescriptor.TYPE_SINT32: (1, 31),
    FieldDescriptor.TYPE_FIXED64: (0, 64),
}
_PACKED = b"\x12\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"


def stream(draw: Random, fingerprint: str) -> Stream:
    """One stream.

    Args:
        draw: decides all.
        fingerprint: of the tokenizer that the verifier serves.
    """
    if draw.random() < 0.1:
        first = draw.choice((draw.randbytes(draw.randrange(200)), _PACKED, hostile(draw).SerializeToString()))
    else:
        opening = _opening(draw, fingerprint)
        for _ in range(draw.choice((0, 0, 0, 1, 2, 4))):
            _spoil(draw, opening.open)
        first = opening.SerializeToString()
    requests = [first, *(_later(draw, fingerprint) for _ in range(draw.choice((0, 1, 2, 4, 8))))]
    if draw.random() < 0.2:
        at = draw.randrange(len(requests))
        requests[at] = values.damaged(draw, requests[at])
    return Stream(tuple(requests), closes=draw.random() < 0.1)


def hostile(draw: Random) -> pb.GenerateRequest:
    """A legal message with any fields set to anything."""
    message = pb.GenerateRequest()
    for _ in range(draw.randrange(1, 8)):
        _spoil(draw, message)
    return message


def _opening(draw: Random, fingerprint: str) -> pb.GenerateRequest:
    sampling = pb.SamplingParams(
        temperature=draw.choice((0.0, 1.0)), seed=draw.getrandbits(64), max_tokens=draw.choice((1, 2, 8, 400))
    )
    opening = pb.OpenSession(
        protocol_version=1, prompt_ids=PROMPT, sampling=sampling, tokenizer_fingerprint=fingerprint, drafter_id="fuzz"
    )
    return pb.GenerateRequest(open=opening)


def _later(draw: Random, fingerprint: str) -> bytes:
    kind = draw.random()
    if kind < 0.1:
        return _opening(draw, fingerprint).SerializeToString()
    if kind < 0.25:
        return hostile(draw).SerializeToString()
    if kind < 0.3:
        return draw.randbytes(draw.randrange(60))
    return pb.GenerateRequest(draft_nodes=_drafts(draw)).SerializeToString()


def _drafts(draw: Random) -> pb.DraftNodes:
    """Nodes that are legal but for what chance gets wrong."""
    num_nodes = draw.choice((0, 1, 3, 16, 64, 511, 512, 513))
    nodes = pb.DraftNodes(
        token_ids=[draw.randrange(VOCAB_SIZE) for _ in range(num_nodes)],
        parent_deltas=[draw.randrange(index + 1) for index in range(num_nodes)],
        scores=draw.randbytes(num_nodes),
        anchor=draw.choice((len(PROMPT) - 1, len(PROMPT), 0, 4, 60)),
        num_verdicts_seen=draw.choice((0, 0, 0, 1, 2, 9)),
    )
    for _ in range(draw.choice((0, 0, 0, 0, 1, 2))):
        _spoil(draw, nodes)
    return nodes


def _spoil(draw: Random, message: Message) -> None:
    """Set one field, here or deeper, to anything its type allows."""
    field = draw.choice(message.DESCRIPTOR.fields)
    if field.message_type is not None and not field.is_repeated:
        _spoil(draw, getattr(message, field.name))
    elif field.is_repeated:
        _refill(draw, getattr(message, field.name), field)
    else:
        setattr(message, field.name, _scalar(draw, field))


def _refill(draw: Random, items: Any, field: FieldDescriptor) -> None:
    del items[:]
    for _ in range(draw.choice((0, 1, 2, 17, 300, 1500))):
        if field.message_type is None:
            items.append(_scalar(draw, field))
        else:
            _spoil(draw, items.add())


def _scalar(draw: Random, field: FieldDescriptor) -> Any:
    match field.type:
        case FieldDescriptor.TYPE_BOOL:
            return draw.random() < 0.5
        case FieldDescriptor.TYPE_DOUBLE | FieldDescriptor.TYPE_FLOAT:
            return draw.choice(values.FLOATS)
        case FieldDescriptor.TYPE_STRING:
            return values.text(draw)
        case FieldDescriptor.TYPE_BYTES:
            return draw.randbytes(draw.choice((0, 1, 63, 64, 65, 600)))
        case FieldDescriptor.TYPE_ENUM:
            return draw.choice((0, 1, 2, 3, 4, 5, 6, 99, -1))
    sign, num_bits = _NUM_BITS[field.type]
    if sign:
        return max(-(2**num_bits), min(2**num_bits - 1, values.integer(draw)))
    return values.integer(draw) % 2**num_bits
