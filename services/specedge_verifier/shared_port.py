"""A TCP port that several processes of one verifier listen on, and no other verifier."""

import socket

from specedge.errors import InvalidRequest
from specedge.wire.channel import listening_address


def reserve(host: str, port: int) -> socket.socket:
    """A socket that holds a TCP port, and listens to nothing, for processes of this user to share.

    Raises InvalidRequest when the address cannot be had; that somebody shares it already is no reason to join.
    """
    reserved = None
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        reserved = socket.socket(family)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(address)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError as error:
        if reserved is not None:
            reserved.close()
        address_text = listening_address(host, port)
        raise InvalidRequest(f"cannot listen on {address_text}: the port is in use or not allowed", "port") from error
    return reserved
