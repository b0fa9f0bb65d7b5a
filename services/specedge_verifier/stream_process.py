"""`python -m specedge_verifier.stream_process FD`: serves gRPC streams for the process that has started it.

It ends when that process says so or is gone. A terminal's Ctrl-C and a supervisor's SIGTERM reach every process of a
verifier; the engine's decides what they mean.
"""

import asyncio
import signal
import socket
import sys


def main(arguments: list[str]) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):  # before anything is imported that takes its time
        signal.signal(number, signal.SIG_IGN)

    from specedge_verifier.stream_worker import serve

    (fd,) = arguments
    return asyncio.run(serve(socket.socket(fileno=int(fd))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
