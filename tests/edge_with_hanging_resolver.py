"""`python tests/edge_with_hanging_resolver.py PARENT edge ...`: an edge on a machine whose resolver never answers."""

import socket
import sys
import threading
from typing import Any

from specedge_cli import child

resolve = socket.getaddrinfo


def hang(host: Any, *arguments: Any, **options: Any) -> Any:
    """Names under example.org are looked for until the process ends."""
    if isinstance(host, str) and host.endswith("example.org"):
        threading.Event().wait()
    return resolve(host, *arguments, **options)


if __name__ == "__main__":
    socket.getaddrinfo = hang
    sys.exit(child.main(sys.argv[1:]))
