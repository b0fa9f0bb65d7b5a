"""The socket that HTTP clients connect to, and what becomes of connections whose client is gone without a word."""

import socket
from typing import Final

from specedge.errors import InvalidRequest

GONE_S: Final = 60
"""Seconds after which a connection ends whose client has acknowledged nothing, or read nothing of what waits for it."""
PROBE_AFTER_S: Final = 15
PROBE_EVERY_S: Final = 5


def bind(host: str, port: int) -> socket.socket:
    """A socket for uvicorn to listen on; raises InvalidRequest, naming the address, when it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio takes Nagle's delay off connections that say they are TCP, and those accepted here say what the listener
    # does; with the delay an answer's first token waits 40 ms for the client to acknowledge the headers.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        watch_peers(listener)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InvalidRequest(f"cannot listen on {host}:{port}: {error.strerror}", "port") from error
    return listener


def watch_peers(listener: socket.socket) -> None:
    """Has the system end accepted connections whose client does not answer any more; they take it from the listener."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", PROBE_AFTER_S),
        ("TCP_KEEPINTVL", PROBE_EVERY_S),
        ("TCP_KEEPCNT", (GONE_S - PROBE_AFTER_S) // PROBE_EVERY_S),
        ("TCP_USER_TIMEOUT", 1000 * GONE_S),
    ):
        if (option := getattr(socket, name, None)) is not None:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)
