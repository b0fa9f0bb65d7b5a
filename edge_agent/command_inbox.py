"""What other threads want a worker thread to do, in order of arrival."""

from collections import deque
from collections.abc import Callable
from threading import Condition

Command = Callable[[], None]


class CommandInbox:
    """A queue of commands that its reader can drain without waiting, or wait for without spinning."""

    def __init__(self) -> None:
        self._commands: deque[Command] = deque()
        self._arrived = Condition()
        self._is_closed = False

    def post(self, command: Command) -> None:
        """Adds a command, and wakes the reader; nothing happens once the inbox is closed."""
        with self._arrived:
            if not self._is_closed:
                self._commands.append(command)
                self._arrived.notify()

    def close(self) -> None:
        """Drops what has not been run and takes nothing more."""
        with self._arrived:
            self._is_closed = True
            self._commands.clear()

    def wait(self) -> None:
        """Returns when there is a command."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._commands)

    def run_all(self) -> None:
        """Runs all commands that have arrived, on the calling thread."""
        while self._commands:
            self._commands.popleft()()
