"""Asks the compiling process for grammars, with a deadline."""

import json
import logging
import socket
import subprocess
import sys
import threading
import time
from typing import Final

from specedge.errors import CapacityExceeded, InvalidRequest

logger = logging.getLogger(__name__)

CPU_S: Final = 0.7
"""Processor seconds for one grammar: a refusal comes within a second where a core is free."""
MEMORY_BYTES: Final = 512 * 1024 * 1024
WALL_S: Final = 10.0
START_S: Final = 60.0
MAX_AT_ONCE: Final = 2


class CompileClient:
    """The serving process's end; safe to call from several threads.

    Args:
        tokenizer_info: the vocabulary, serialised.
        cpu_s: processor seconds that compiling one grammar may take.
    """

    def __init__(self, tokenizer_info: str, cpu_s: float) -> None:
        self._cpu_s = cpu_s
        self._tokenizer_info = tokenizer_info.encode()
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(MAX_AT_ONCE)
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._is_closed = False

    def start(self) -> None:
        """Start the process, or start it again when it has ended; takes some seconds, then nothing.

        Raises:
            CapacityExceeded: it did not become ready, or was closed.
        """
        with self._lock:
            if self._is_closed:
                raise CapacityExceeded("grammars are no longer compiled: the service is shutting down")
            if self._process is None or self._process.poll() is not None:
                self._start()

    def compile(self, kind: str, source: str, param: str) -> tuple[bool, str]:
        """Whether the grammar is followed lazily, and then its text for llguidance; else xgrammar's, serialised;
        nothing where compiling it again takes less than reading it.

        Raises:
            InvalidRequest: the grammar is refused, or uses too much time or memory.
            CapacityExceeded: too many grammars are being compiled, or the machine is too busy to compile one.
        """
        self.start()
        deadline = time.monotonic() + WALL_S
        if not self._places.acquire(timeout=WALL_S):
            raise CapacityExceeded(f"{MAX_AT_ONCE} grammars are being compiled, and none was ready in {WALL_S} s")
        try:
            request = {"kind": kind, "source": source, "cpu_s": self._cpu_s, "memory_bytes": MEMORY_BYTES}
            answer = self._ask(json.dumps(request).encode(), deadline)
        except OSError as error:
            raise CapacityExceeded(f"a grammar was not compiled within {WALL_S} s: {error}") from error
        finally:
            self._places.release()
        if not answer:
            limits = f"{self._cpu_s} s or {MEMORY_BYTES // 2**20} MiB"
            raise InvalidRequest(f"{kind} is too complex: compiling it takes more than {limits}", param=param)
        head, _, compiled = answer.partition(b"\n")
        fields = json.loads(head)
        if fields["reason"] is not None:
            raise InvalidRequest(f"{kind} {fields['reason']}", param=param)
        return fields["is_lazy"], compiled.decode()

    def close(self) -> None:
        """End the process, for good."""
        self._is_closed = True
        process = self._process
        if process is not None:
            process.kill()  # what waits for it, perhaps under the lock, goes on
        with self._lock:
            self._stop()

    def _start(self) -> None:
        self._stop()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "specedge.grammar.compile_process", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._control = ours
        try:
            answer = self._ask(self._tokenizer_info, time.monotonic() + START_S)
        except OSError:
            answer = b""
        if answer != b"ready":
            self._stop()
            raise CapacityExceeded("the process that compiles grammars did not start", retry_after_s=5.0)
        logger.info("grammars are compiled by process %s", self._process.pid)

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._control = self._process = None

    def _ask(self, request: bytes, deadline: float) -> bytes:
        """One connection: the request, then the answer; empty when the child was ended."""
        control = self._control
        if control is None:
            raise ConnectionError("closed")
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                socket.send_fds(control, [b"c"], [theirs.fileno()])
            ours.settimeout(max(0.01, deadline - time.monotonic()))
            ours.sendall(request)
            ours.shutdown(socket.SHUT_WR)
            parts: list[bytes] = []
            while True:
                ours.settimeout(max(0.01, deadline - time.monotonic()))
                part = ours.recv(1 << 20)
                if not part:
                    return b"".join(parts)
                parts.append(part)
