"""What is sent, and how it is written down: a line of JSON that can be read, edited and sent again.

A stream has `requests`: each a GenerateRequest in protobuf's text format, or `{"hex": ...}` where the text would not
give the same bytes again; and `closes` if our side of it is closed at once. A post has a `path`, a `type` if it is not
JSON's, and its content as `json`, else as `text`, else as `hex`. In the corpus a line also has a `name` and the
`outcome` that is right: a gRPC status or an HTTP status.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import DecodeError

from specedge.verification.v1 import verification_pb2 as pb

JSON_TYPE = "application/json"


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream to a verifier.

    Attributes:
        requests: serialised.
        closes: whether our side is closed after them at once, with which a session ends wherever it is.
    """

    requests: tuple[bytes, ...]
    closes: bool = False


@dataclass(frozen=True, slots=True)
class Post:
    """One request to an edge."""

    path: str
    content: bytes
    content_type: str = JSON_TYPE


Input = Stream | Post


@dataclass(frozen=True, slots=True)
class Case:
    """An input that is sent again.

    Attributes:
        sent: the input.
        name: what it is; empty for one that a run has left.
        outcome: how it must end; empty where everything that is harmless will do.
    """

    sent: Input
    name: str = ""
    outcome: str = ""


def read_cases(path: Path) -> list[Case]:
    """The inputs in a file, or in all files of a folder."""
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    lines = [line for file in files for line in file.read_text("utf-8").split("\n") if line]
    return [case_of(line) for line in lines]


def case_of(line: str) -> Case:
    """What a line says."""
    given = json.loads(line)
    return Case(_sent(given), given.get("name", ""), given.get("outcome", ""))


def line_of(sent: Input, **beside: str) -> str:
    """An input as a line; `beside` is what else it says, a `name` and an `outcome`."""
    if isinstance(sent, Stream):
        written: dict[str, Any] = {"requests": [_written(request) for request in sent.requests]}
        written |= {"closes": True} if sent.closes else {}
    else:
        kind = {} if sent.content_type == JSON_TYPE else {"type": sent.content_type}
        written = {"path": sent.path, **kind, **_content(sent.content)}
    return json.dumps({**beside, **written})


def _sent(given: dict[str, Any]) -> Input:
    match given:
        case {"requests": requests}:
            return Stream(tuple(_request(request) for request in requests), given.get("closes", False))
        case {"json": value}:
            content = json.dumps(value).encode()
        case {"text": text}:
            content = text.encode()
        case _:
            content = bytes.fromhex(given["hex"])
    return Post(given["path"], content, given.get("type", JSON_TYPE))


def _request(written: str | dict[str, str]) -> bytes:
    if isinstance(written, str):
        return text_format.Parse(written, pb.GenerateRequest()).SerializeToString()
    return bytes.fromhex(written["hex"])


def _written(request: bytes) -> str | dict[str, str]:
    try:
        message = pb.GenerateRequest.FromString(request)
        text = text_format.MessageToString(message, as_one_line=True, use_short_repeated_primitives=True)
        if _request(text) == request:
            return text
    except (DecodeError, text_format.ParseError):
        pass
    return {"hex": request.hex()}


def _content(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
        if json.dumps(value, allow_nan=False).encode() == content:
            return {"json": value}
    except (ValueError, RecursionError):
        pass
    try:
        return {"text": content.decode()}
    except UnicodeDecodeError:
        return {"hex": content.hex()}
