"""Finds TCP ports that a process can listen on."""

import socket

from specedge.errors import SpecEdgeError


class PortBusy(SpecEdgeError):
    """A port that was asked for is taken."""


def is_free(host: str, port: int) -> bool:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((host, port))
        except OSError:
            return False
    return True


def free_port(host: str) -> int:
    with socket.socket() as candidate:
        candidate.bind((host, 0))
        port: int = candidate.getsockname()[1]
        return port


def choose_port(host: str, wanted: int, is_asked_for: bool, setting: str) -> int:
    """`wanted` if it is free, else a free one.

    Raises:
        PortBusy: the user asked for this very port, so another one would be a surprise.
    """
    if wanted == 0:
        return free_port(host)
    if is_free(host, wanted):
        return wanted
    if is_asked_for:
        raise PortBusy(f"{setting} = {wanted}: something else is listening on {host}:{wanted}; choose another port")
    return free_port(host)
