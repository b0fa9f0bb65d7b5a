"""Streams as Hypothesis makes them: from the protocol's own description, so that a new field is sent as well."""

from typing import Any

from fuzz.grpc_messages import PROMPT
from fuzz.inputs import Stream
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

from specedge.verification.v1 import verification_pb2 as pb

_INTEGERS = {
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_SINT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_FIXED64: (0, 2**64 - 1),
}
_OTHERS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_DOUBLE: st.floats(),
    FieldDescriptor.TYPE_STRING: st.text(max_size=300),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=80),
    FieldDescriptor.TYPE_ENUM: st.integers(-1, 8),
}


def streams(fingerprint: str) -> st.SearchStrategy[Stream]:
    """Streams that begin with an opening of which a field or two are hostile, or with any message.

    Args:
        fingerprint: of the tokenizer that the verifier serves.
    """
    sampling = pb.SamplingParams(max_tokens=8)
    legal = pb.OpenSession(
        protocol_version=1, prompt_ids=PROMPT, sampling=sampling, tokenizer_fingerprint=fingerprint, drafter_id="made"
    )

    def opening(fields: dict[str, Any]) -> bytes:
        request = pb.GenerateRequest(open=legal)
        request.open.MergeFrom(pb.OpenSession(**fields))
        return request.SerializeToString()

    openings = _some_fields(pb.OpenSession.DESCRIPTOR).map(opening)
    anything = _some_fields(pb.GenerateRequest.DESCRIPTOR).map(
        lambda fields: pb.GenerateRequest(**fields).SerializeToString()
    )
    later = st.lists(_drafts() | anything, max_size=4)
    return st.builds(
        lambda first, rest, closes: Stream((first, *rest), closes), openings | anything, later, st.booleans()
    )


@st.composite
def _drafts(draw: st.DrawFn) -> bytes:
    """Nodes of which each number may be wrong."""
    num_nodes = draw(st.integers(0, 6))
    small = st.lists(st.integers(0, 5000), min_size=num_nodes, max_size=num_nodes)
    deltas = [draw(st.integers(0, index + 1)) for index in range(num_nodes)]
    scores = draw(st.binary(min_size=num_nodes, max_size=num_nodes))
    nodes = pb.DraftNodes(token_ids=draw(small), parent_deltas=deltas, scores=scores, anchor=draw(st.integers(3, 9)))
    return pb.GenerateRequest(draft_nodes=nodes).SerializeToString()


def _some_fields(descriptor: Descriptor) -> st.SearchStrategy[dict[str, Any]]:
    """At most two fields of a message, with anything that their types allow."""
    fields = st.lists(st.sampled_from(list(descriptor.fields)), max_size=2, unique_by=lambda field: field.name)
    return fields.flatmap(lambda some: st.fixed_dictionaries({field.name: _values(field) for field in some}))


def _values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        one: st.SearchStrategy[Any] = _some_fields(field.message_type)
    elif field.type in _INTEGERS:
        one = st.integers(*_INTEGERS[field.type]) | st.integers(0, 20)
    else:
        one = _OTHERS[field.type]
    return st.lists(one, max_size=8) if field.is_repeated else one
