"""Starts, watches and stops the demo's child processes."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from types import FrameType

TAIL_BYTES = 16384


def specedge_command(arguments: Sequence[str]) -> list[str]:
    """The command line of a `specedge` process that ends when this process does."""
    return [sys.executable, "-m", "specedge_cli.child", str(os.getpid()), *arguments]


class Child:
    """One child process: in a session of its own, so that the terminal's Ctrl-C does not reach it, and gone with us.

    Args:
        name: how it is called in messages.
        command: program and arguments.
        show_output: let it write to our own standard error instead of keeping its output.
    """

    def __init__(self, name: str, command: Sequence[str], show_output: bool = False) -> None:
        self.name = name
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=None if show_output else self._output,
            stderr=None if show_output else subprocess.STDOUT,
            env={"SPECEDGE_LOG_FORMAT": "text", **os.environ},  # it is people who are shown these lines
            start_new_session=True,
        )

    @property
    def process_id(self) -> int:
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def last_lines(self, count: int) -> list[str]:
        """The end of what it wrote."""
        size = os.fstat(self._output.fileno()).st_size
        tail = os.pread(self._output.fileno(), TAIL_BYTES, max(0, size - TAIL_BYTES))
        return [line for line in tail.decode(errors="replace").splitlines() if line.strip()][-count:]

    def stop(self, timeout_s: float, interrupts: "Interrupts") -> None:
        """SIGTERM, then SIGKILL after `timeout_s` or when the user insists; returns once it is gone."""
        deadline = time.monotonic() + timeout_s
        self._signal(signal.SIGTERM)
        while self.exit_code() is None and time.monotonic() < deadline and not interrupts.is_urgent:
            time.sleep(0.05)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._output.close()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)


class Interrupts:
    """Counts the requests to end (SIGINT, SIGTERM, and SIGHUP unless under nohup) that this process has received."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._receive)

    @property
    def is_urgent(self) -> bool:
        """The user asked twice: there is no time to drain."""
        return self.count > 1

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
