"""Answers `/metrics` on a port of its own, apart from whatever the process serves to others."""

import logging
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from specedge.errors import InvalidRequest

logger = logging.getLogger(__name__)


def serve_metrics(registry: CollectorRegistry, host: str, port: int) -> WSGIServer:
    """Answer on a thread of its own; port 0 takes a free one.

    Raises:
        InvalidRequest: the address cannot be had.
    """
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
    return server


def stop_metrics(server: WSGIServer | None) -> None:
    """Ends a server of metrics; None is none."""
    if server is not None:
        server.shutdown()
        server.server_close()
