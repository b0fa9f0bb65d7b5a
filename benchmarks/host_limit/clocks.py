"""CPU time of a process by thread and by phase."""

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from threading import Thread, local
from typing import Any


class PhaseClocks:
    """Adds up the CPU time of functions; what a timed function spends in another one counts for that one only.

    Attributes:
        seconds: by phase.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._local = local()

    def time(self, owner: Any, name: str, phase: str) -> None:
        """Has a function or method of a class or module counted from now on."""
        setattr(owner, name, self.timed(getattr(owner, name), phase))

    def timed(self, call: Callable[..., Any], phase: str) -> Callable[..., Any]:
        """The same function, counted."""
        seconds, own = self.seconds, self._local

        def timed(*args: Any, **kwargs: Any) -> Any:
            inner = getattr(own, "inner_s", 0.0)
            own.inner_s = 0.0
            began_s = time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                spent_s = time.thread_time() - began_s
                seconds[phase] += spent_s - own.inner_s
                own.inner_s = inner + spent_s

        return timed


def process_cpu_s(pid: int) -> float:
    """CPU seconds of a running process."""
    return time.clock_gettime((~pid << 3) | 2)


def thread_cpu_s(thread: Thread) -> float:
    """CPU seconds of a running Python thread."""
    assert thread.ident is not None
    if sys.platform != "linux":
        raise OSError(f"CPU time of other threads is not known on {sys.platform}")
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
