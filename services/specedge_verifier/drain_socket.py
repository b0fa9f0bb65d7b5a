"""The Unix socket by which `specedge verifier drain` reaches a verifier on the same machine, and only its own user may.

Whoever writes `drain` to it is told, a line of JSON at a time, how far the drain is, until the process has ended.
"""

import asyncio
import json
import logging
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from specedge.errors import SpecEdgeError
from specedge.tls.rules import UNIX

logger = logging.getLogger(__name__)

REQUEST: Final = b"drain\n"
NEWS_EVERY_S: Final = 0.2
REQUEST_TIMEOUT_S: Final = 5.0


class NoDrainSocket(SpecEdgeError):
    """The folder of the sockets cannot be used, or is not this user's alone."""


@dataclass(frozen=True, slots=True)
class DrainNews:
    """How far a drain is.

    Args:
        process_id: the verifier's.
        num_sessions: those that have not ended.
        grace_s: after which they are ended.
    """

    process_id: int
    num_sessions: int
    grace_s: float


def drain_folder() -> Path:
    """Where the sockets of this user's verifiers are, as tmux has it: a folder that is this user's alone.

    Raises NoDrainSocket when somebody else could write there.
    """
    folder = Path(tempfile.gettempdir()) / f"specedge-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise NoDrainSocket(f"{folder} cannot be used: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise NoDrainSocket(f"{folder} is not a folder of user {os.getuid()} alone (mode 0700)")
    return folder


def drain_path(host: str, port: int) -> Path:
    """The socket of the verifier that listens there."""
    name = f"unix-{sha256(host.encode()).hexdigest()[:8]}" if host.startswith(UNIX) else str(port)
    return drain_folder() / f"verifier-{name}.sock"


@asynccontextmanager
async def drain_socket(
    host: str, port: int, drain: Callable[[], None], news: Callable[[], DrainNews]
) -> AsyncIterator[None]:
    """Listens while the block runs; a verifier that cannot be drained this way serves all the same.

    Args:
        host, port: where the verifier listens.
        drain: called when it is asked to.
        news: how far it is.
    """
    try:
        path = drain_path(host, port)
        listener = _listen(path)
    except (NoDrainSocket, OSError) as error:
        logger.warning("`specedge verifier drain` will not find this verifier: %s", error)
        yield
        return
    loop = asyncio.get_running_loop()
    answering: set[asyncio.Task[None]] = set()

    def accept() -> None:
        # Not loop.sock_accept(): what that has accepted is lost when its task is cancelled at that moment.
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            logger.warning("`specedge verifier drain` will not find this verifier any more: %s", error)
            loop.remove_reader(listener)
            return
        connection.setblocking(False)
        task = asyncio.create_task(_answer(connection, drain, news))
        answering.add(task)
        task.add_done_callback(answering.discard)
        task.add_done_callback(lambda _: connection.close())

    with listener:
        loop.add_reader(listener, accept)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            loop.remove_reader(listener)
            for task in answering:
                task.cancel()
            if answering:
                await asyncio.wait(answering)


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)  # of a verifier that was killed: the port is this one's now
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen()
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


async def _answer(connection: socket.socket, drain: Callable[[], None], news: Callable[[], DrainNews]) -> None:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            if await loop.sock_recv(connection, len(REQUEST)) != REQUEST:
                return
        # Closed by the end of the process alone: that is how whoever has asked learns of it.
        os.dup(connection.fileno())
        logger.info("asked to drain")
        drain()
        while True:
            await loop.sock_sendall(connection, json.dumps(asdict(news())).encode() + b"\n")
            await asyncio.sleep(NEWS_EVERY_S)
    except OSError as error:
        logger.debug("whoever asked to drain has left: %r", error)
