"""A process that serves streams, where the engine is: started, spoken to, ended."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from specedge.errors import EngineDead
from specedge_verifier.bridge import Engine
from specedge_verifier.frame_link import FrameLink
from specedge_verifier.remote_sessions import FindAccount, RemoteSessions
from specedge_verifier.stream_plan import StreamCounts, StreamPlan

if TYPE_CHECKING:
    from specedge.grammar.session_grammars import SessionGrammars


class StreamChild:
    """A stream process, as the engine's process sees it.

    Attributes:
        sessions: its sessions.
        counts: the last it told of itself.
        num_silent: pulses since it said how it is.
        listening: done when it listens, or with the reason why it cannot.
        ended: set when its link has ended.
        on_end: called then, with the reason.
    """

    def __init__(self, plan: StreamPlan) -> None:
        self.plan = plan
        self.counts = StreamCounts()
        self.num_silent = 0
        self.ended = asyncio.Event()
        self.on_end: Callable[[str], None] = lambda reason: None
        self.listening: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(
        self,
        engine: Engine,
        grammars: "SessionGrammars | None",
        find_account: FindAccount,
        on_counts: Callable[[StreamCounts], None],
    ) -> None:
        """Starts the process; `listening` tells when it is."""
        own, other = socket.socketpair()
        with other:
            self._link = FrameLink(own, {}, self._end, waits=False)
            self.sessions = RemoteSessions(engine, grammars, find_account, self._link.put)
            self._link.handlers = {
                **self.sessions.handlers,
                "listening": lambda: self.listening.set_result(None),
                "refused": self.listening.set_exception,
                "counts": self._count,
            }
            self._on_counts = on_counts
            command = [sys.executable, "-m", "specedge_verifier.stream_process", str(other.fileno())]
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, pass_fds=(other.fileno(),)
            )
        self._link.put(("serve", self.plan))

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, kind: str, *fields: object) -> None:
        """Sends it a message."""
        self._link.put((kind, *fields))

    async def wait(self) -> int:
        """Returns its exit code once it has ended and everything it sent has been taken."""
        await self.ended.wait()
        return await self._process.wait()

    async def kill(self) -> None:
        """Leaves nothing of it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        self._link.close()
        self.sessions.close_all()

    def _count(self, counts: StreamCounts) -> None:
        self.num_silent, self.counts = 0, counts
        self._on_counts(counts)

    def _end(self, reason: str) -> None:
        self.sessions.close_all()
        self.ended.set()
        if not self.listening.done():
            self.listening.set_exception(
                EngineDead(f"stream process {self.pid} has ended before it listened: {reason}")
            )
        self.on_end(reason)
