"""What a gRPC call carries beside its messages: request id and trace, for the logs and spans of both sides."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from opentelemetry import propagate, trace

from specedge.logs import context_field, log_context
from specedge.tracing import tracer

REQUEST_ID_KEY: Final = "x-request-id"
_SANE_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")

Metadata = tuple[tuple[str, str], ...]


def outgoing_metadata() -> Metadata:
    """The caller's request id, where it has one, and W3C trace context, where a span is being recorded."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    request_id = context_field("request_id")
    if request_id is not None:
        carrier[REQUEST_ID_KEY] = request_id
    return tuple(carrier.items())


@contextmanager
def incoming_call(method: str, metadata: Iterable[tuple[str, str | bytes]] | None) -> Iterator[trace.Span]:
    """The span of a call being served, within the caller's trace; records made inside carry the caller's request id.

    Args:
        method: the full name, "package.Service/Method".
        metadata: as the caller sent it. An id that is not 1 to 128 printable characters is left out.
    """
    carrier = {key: value for key, value in metadata or () if isinstance(value, str)}
    request_id = carrier.get(REQUEST_ID_KEY, "")
    fields = {"request_id": request_id} if _SANE_REQUEST_ID.fullmatch(request_id) else {}
    service, _, name = method.rpartition("/")
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
    span = tracer.start_as_current_span(
        method, context=propagate.extract(carrier), kind=trace.SpanKind.SERVER, attributes=attributes
    )
    with log_context(**fields), span as opened:
        yield opened
