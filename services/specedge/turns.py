"""How the threads of a process take turns in its interpreter."""

import sys
from typing import Final

_TURN_S: Final = 0.0005


def take_short_turns() -> None:
    """A thread that computes hands the interpreter over after half a millisecond, not five.

    The event loop gives it away with every socket it writes to, and then waits that long for each to come back.
    """
    sys.setswitchinterval(_TURN_S)
