"""Answers `/metrics` on a port of its own, apart from whatever the process serves to others."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server

from specedge.errors import InvalidRequest

logger = logging.getLogger(__name__)


@contextmanager
def serving_metrics(registry: CollectorRegistry, host: str, port: int | None) -> Iterator[None]:
    """Answer on a thread of its own while the block runs; port 0 takes a free one, None serves nothing.

    Raises:
        InvalidRequest: the address cannot be had.
    """
    if port is None:
        yield
        return
    try:
        server, _ = start_http_server(port, host, registry=registry)
    except OSError as error:
        raise InvalidRequest(
            f"cannot serve metrics on {host}:{port}: {error.strerror}; metrics_port takes another one, each process on "
            "a machine needs its own (0 is any free port, off serves none)",
            "metrics_port",
        ) from error
    shown_host = f"[{host}]" if ":" in host else host
    logger.info("metrics on http://%s:%d/metrics", shown_host, server.server_port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
