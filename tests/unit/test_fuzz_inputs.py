"""Whatever a fuzz run sends is written down so that the same is sent again."""

from random import Random

import pytest
from fuzz.grpc_messages import stream
from fuzz.http_bodies import post
from fuzz.inputs import Case, Input, Post, Stream, case_of, line_of

from specedge.verification.v1 import verification_pb2 as pb

NAN = pb.GenerateRequest(open=pb.OpenSession(sampling=pb.SamplingParams(temperature=float("nan"))))


@pytest.mark.parametrize("seed", range(20))
def test_what_is_drawn_can_be_written_down(seed: int) -> None:
    draw = Random(seed)
    for sent in (stream(draw, "f"), post(draw), post(draw)):
        assert case_of(line_of(sent)) == Case(sent)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (Stream((NAN.SerializeToString(),)), '{"requests": ["open { sampling { temperature: nan } }"]}'),
        (Stream((b"\xff",), closes=True), '{"requests": [{"hex": "ff"}], "closes": true}'),
        (Post("/a", b'{"n": 1}'), '{"path": "/a", "json": {"n": 1}}'),
        (Post("/a", b'{"n":1}', "text/plain"), '{"path": "/a", "type": "text/plain", "text": "{\\"n\\":1}"}'),
        (Post("/a", b'{"n": NaN}'), '{"path": "/a", "text": "{\\"n\\": NaN}"}'),
        (Post("/a", b"[" * 9999), f'{{"path": "/a", "text": "{"[" * 9999}"}}'),
        (Post("/a", b"\xff"), '{"path": "/a", "hex": "ff"}'),
    ],
    ids=[
        "message",
        "bytes that are no message",
        "JSON",
        "JSON in other words",
        "NaN",
        "deep",
        "bytes that are no text",
    ],
)
def test_a_line_can_be_read(sent: Input, expected: str) -> None:
    assert line_of(sent) == expected
    assert case_of(expected) == Case(sent)
    assert case_of(line_of(sent, name="a", outcome="OK")) == Case(sent, "a", "OK")
