"""One direction of a connection: every message takes the delay and some jitter, and none overtakes another."""

from random import Random

from specedge_bench.simulation.events import Action, EventQueue


class Link:
    """Carries messages as actions.

    Args:
        delay_s: one way.
        jitter_s: the most that chance adds, uniformly.
    """

    def __init__(self, events: EventQueue, delay_s: float, jitter_s: float, random: Random) -> None:
        self._events = events
        self._delay_s = delay_s
        self._jitter_s = jitter_s
        self._random = random
        self._last_s = 0.0

    def send(self, arrived: Action) -> None:
        """Has an action run when a message sent now arrives."""
        jitter_s = self._random.uniform(0.0, self._jitter_s) if self._jitter_s else 0.0
        self._last_s = max(self._last_s, self._events.now_s + self._delay_s + jitter_s)
        self._events.at(self._last_s, arrived)
