"""A line protocol between a process and one that it started: a first line announces, then each line gets one answer.

The started process ends at the end of its standard input, and on Linux with its parent, even one that was killed.
An answer that begins with "error " carries the reason.
"""

import asyncio
import contextlib
import ctypes
import os
import resource
import selectors
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Self

from specedge.errors import SpecEdgeError

ERROR = "error "
ANSWER_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0
_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29
_MAX_FILES = 1024  # select() knows no higher descriptor


class NetworkProcessFailed(SpecEdgeError):
    """A process that shapes the network did not start, ended, or refused a command."""


def run_precisely(parent_id: int, main: Coroutine[Any, Any, int]) -> int:
    """Runs an event loop that wakes within microseconds and ends with the parent process.

    It waits with select(): the default loop's epoll rounds every wait up to a whole millisecond.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        libc.prctl(_PR_SET_TIMERSLACK, 1)
    if os.getppid() != parent_id:
        main.close()
        return 1
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard_limit == resource.RLIM_INFINITY or hard_limit > _MAX_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_FILES, hard_limit))
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(main)


async def serve_commands(announcement: str, answer: Callable[[str], str]) -> None:
    """Announces, then answers lines until the input ends."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(announcement, flush=True)
    while line := await reader.readline():
        try:
            reply = answer(line.decode().strip())
        except SpecEdgeError as error:
            reply = f"{ERROR}{error}"
        print(reply, flush=True)


class ControlledProcess:
    """A process that speaks the line protocol; see `start`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.announcement = ""
        self._name = name
        self._process = process
        self._turn = asyncio.Lock()
        self._num_owed = 0  # answers; more than one where a waiter was cancelled

    @classmethod
    async def start(cls, module: str, arguments: Sequence[str]) -> Self:
        """Runs `python -m MODULE OWN_PROCESS_ID ARGUMENTS ...` and waits for its announcement.

        Raises:
            NetworkProcessFailed: it ended, announced an error, or said nothing in time.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            str(os.getpid()),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        started = cls(module, process)
        try:
            started.announcement = started._accepted(await started._read())
        except BaseException:
            await started.stop()
            raise
        return started

    @property
    def process_id(self) -> int:
        return self._process.pid

    async def ask(self, line: str) -> str:
        """Sends one line and returns the answer.

        Raises:
            NetworkProcessFailed: it has ended, refused, or said nothing in time.
        """
        assert self._process.stdin is not None
        async with self._turn:
            with contextlib.suppress(ConnectionError):  # it has ended; so has its output
                self._process.stdin.write(f"{line}\n".encode())
                await self._process.stdin.drain()
            self._num_owed += 1
            while True:
                answer = await self._read()
                self._num_owed -= 1
                if not self._num_owed:
                    return self._accepted(answer)

    async def stop(self) -> None:
        """Ends the process by the end of its input; kills it if that takes too long."""
        try:
            await asyncio.wait_for(self._process.communicate(b""), STOP_TIMEOUT_S)
        except TimeoutError:
            self._process.kill()
            await self._process.communicate()

    async def _read(self) -> str:
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), ANSWER_TIMEOUT_S)
        except TimeoutError:
            raise NetworkProcessFailed(f"{self._name} said nothing for {ANSWER_TIMEOUT_S:g} s") from None
        if not line:
            raise NetworkProcessFailed(f"{self._name} has ended (process {self._process.pid})")
        return line.decode().strip()

    def _accepted(self, text: str) -> str:
        if text.startswith(ERROR):
            raise NetworkProcessFailed(f"{self._name}: {text.removeprefix(ERROR)}")
        return text
