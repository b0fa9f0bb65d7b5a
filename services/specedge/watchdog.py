"""Notices that a process has stopped working while it still runs: a thread that does not get on, or the event loop.

A thread writes a heartbeat, two plain attributes, at every step; the event loop is asked to answer a ping. A thread of
the watchdog's own looks at both. Time counts only while that thread runs, so that a process that was stopped and goes
on, or a machine that slept, is not taken for a stuck one.
"""

import logging
import os
import sys
import threading
import time
import traceback
from asyncio import AbstractEventLoop
from collections.abc import Callable
from dataclasses import dataclass, field

from specedge.background import call_on_loop

logger = logging.getLogger(__name__)

LOST_THREAD = 70
"""Exit code of a process whose model thread or event loop has died or hangs: start it again."""

_LOOKS_PER_LIMIT = 20
_MAX_LOOK_S = 1.0
_REPORT_S = 2.0
"""How long the log may take for the stacks; whoever reads it may be what hangs."""


@dataclass(slots=True)
class Heartbeat:
    """Written by the thread that is watched, read by the watchdog.

    Attributes:
        number: of the piece of work the thread is at, counted from 1.
        is_busy: whether it is at one, and not waiting for the next.
    """

    number: int = 0
    is_busy: bool = False

    def beat(self) -> None:
        """A piece of work begins."""
        self.number += 1
        self.is_busy = True

    def rest(self) -> None:
        """Nothing is to be done; waiting may take as long as it likes."""
        self.is_busy = False


@dataclass(slots=True)
class _Watch:
    """How long a heartbeat has been at the same piece of work."""

    heartbeat: Heartbeat
    number: int = 0
    stuck_s: float = field(default=0.0, init=False)

    def look(self, passed_s: float) -> float:
        heartbeat = self.heartbeat
        if heartbeat.is_busy and heartbeat.number == self.number:
            self.stuck_s += passed_s
        else:
            self.number, self.stuck_s = heartbeat.number, 0.0
        return self.stuck_s


class Watchdog:
    """Watches one thread and the event loop of a process.

    When the thread is stuck, `on_stuck` has `grace_s` to end the process in good order; when the loop is, there is
    nobody to do that. Either way the stacks of all threads are logged before the process is ended.

    Args:
        loop: the event loop.
        name: of the thread, for the log.
        heartbeat: of the thread; None watches the event loop alone.
        limit_s: how long a piece of work of the thread, or a ping of the loop, may take.
        grace_s: from a stuck thread to the end of the process.
        on_stuck: called on the event loop with the reason, once.
        end: ends the process.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        *,
        name: str,
        heartbeat: Heartbeat | None,
        limit_s: float,
        grace_s: float,
        on_stuck: Callable[[str], None],
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._loop = loop
        self._name = name
        self._limit_s = limit_s
        self._grace_s = grace_s
        self._on_stuck = on_stuck
        self._end = end
        self._left_s: float | None = None  # until the process is ended
        self._look_s = min(_MAX_LOOK_S, limit_s / _LOOKS_PER_LIMIT)
        self._ping = Heartbeat()
        self._work = None if heartbeat is None else _Watch(heartbeat)
        self._answer = _Watch(self._ping)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Nothing is watched, and nothing ended, from now on."""
        self._stopped.set()

    def end_soon(self) -> None:
        """The process is to end by itself within `grace_s`; else it is ended."""
        if self._left_s is None:
            self._left_s = self._grace_s

    def _run(self) -> None:
        looked_s = time.monotonic()
        while not self._stopped.wait(self._look_s):
            now_s = time.monotonic()
            passed_s, looked_s = min(now_s - looked_s, 2 * self._look_s), now_s
            if not self._look(passed_s):
                if not self._stopped.is_set():
                    self._end(LOST_THREAD)
                return

    def _look(self, passed_s: float) -> bool:
        """Whether the process may go on."""
        if self._left_s is not None:
            self._left_s -= passed_s
            if self._left_s <= 0:
                return False
        elif self._work is not None and (stuck_s := self._work.look(passed_s)) >= self._limit_s:
            reason = f"the {self._name} thread has not moved for {stuck_s:.1f} s; the limit is {self._limit_s:g} s"
            self._report(reason)
            self.end_soon()
            self._call(lambda: self._on_stuck(reason))
        if (silent_s := self._answer.look(passed_s)) >= self._limit_s:
            self._report(f"the event loop has not moved for {silent_s:.1f} s; the limit is {self._limit_s:g} s")
            return False
        if not self._ping.is_busy:
            self._ping.beat()
            self._call(self._ping.rest)
        return True

    def _call(self, call: Callable[[], None]) -> None:
        """Has the event loop call something, unless it has ended."""
        if not call_on_loop(self._loop, call):
            self._ping.rest()

    def _report(self, reason: str) -> None:
        """Logs what every thread is at, unless the log itself is stuck."""
        text = f"{reason}; every thread's stack:\n{stacks()}"

        def report() -> None:
            logger.critical("%s", text)
            for handler in logging.getLogger().handlers:
                handler.flush()

        reporting = threading.Thread(target=report, name="report", daemon=True)
        reporting.start()
        reporting.join(_REPORT_S)


def stacks() -> str:
    """What every thread is at, the innermost call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    )


def leave() -> None:
    """Ends this process at once with LOST_THREAD: a thread that hangs is not waited for, nor what it holds freed."""
    logging.shutdown()
    os._exit(LOST_THREAD)
