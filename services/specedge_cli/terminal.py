"""Takes the terminal's Ctrl-C for this process alone.

`make` dies of the interrupt that its recipe handles, and then reports a failure where there was an orderly end. A
recipe that makes itself the terminal's foreground process group, as a shell does for its jobs, is interrupted alone.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_foreground_group() -> Iterator[None]:
    """For the time of the block, be the foreground group of the terminal on standard input, if there is one to take."""
    if not _is_in_foreground():
        yield
        return
    terminal, group = sys.stdin.fileno(), os.getpgrp()
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTTOU, signal.SIGTSTP)}
    os.setpgid(0, 0)
    os.tcsetpgrp(terminal, os.getpgrp())
    try:
        yield
    finally:
        os.tcsetpgrp(terminal, group)
        os.setpgid(0, group)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _is_in_foreground() -> bool:
    try:
        return os.isatty(sys.stdin.fileno()) and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp() != os.getpid()
    except (OSError, ValueError):
        return False
