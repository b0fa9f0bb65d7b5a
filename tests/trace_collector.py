"""A collector of OpenTelemetry traces (OTLP over HTTP) that keeps what it is sent."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class TraceCollector:
    """Spans by service name, in order of arrival."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._spans: list[tuple[str, Any]] = []
        self._changed = threading.Condition()

    def take(self, message: ExportTraceServiceRequest) -> None:
        """Keeps a message's spans."""
        with self._changed:
            for group in message.resource_spans:
                owner = attributes_of(group.resource)["service.name"]
                self._spans += [(owner, span) for scope in group.scope_spans for span in scope.spans]
            self._changed.notify_all()

    def wait(self, service: str, name: str, count: int, timeout_s: float = 30.0) -> list[Any]:
        """The spans of that name, once there are `count` of them."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while len(found := [span for owner, span in self._spans if (owner, span.name) == (service, name)]) < count:
                left_s = deadline - time.monotonic()
                arrived = [(owner, span.name) for owner, span in self._spans]
                assert left_s > 0, f"{count} times {name} of {service} not among {arrived}"
                self._changed.wait(left_s)
        return found


@contextmanager
def trace_collector() -> Iterator[TraceCollector]:
    """Listens on loopback as long as the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.take(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing: the test says what matters."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = TraceCollector(f"http://127.0.0.1:{server.server_port}/v1/traces")
        thread = threading.Thread(target=server.serve_forever, name="collector")
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


def attributes_of(span: Any) -> dict[str, Any]:
    """A span's attributes, or an event's, as plain values."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}
