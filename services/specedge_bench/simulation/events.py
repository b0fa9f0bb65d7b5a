"""Virtual time: what is to happen, in order of when; and the clock of a device that works ahead of it."""

from collections.abc import Callable
from heapq import heappop, heappush

Action = Callable[[], None]

_ACTIONS_PER_TICK = 4096


class EventQueue:
    """Runs actions in order of their times, first come first on ties."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._num_events = 0
        self._heap: list[tuple[float, int, Action]] = []

    def at(self, time_s: float, action: Action) -> None:
        """Has an action run at a time, now at the earliest."""
        self._num_events += 1
        heappush(self._heap, (max(time_s, self.now_s), self._num_events, action))

    def after(self, delay_s: float, action: Action) -> None:
        """Has an action run after a delay."""
        self.at(self.now_s + delay_s, action)

    def run(self, on_tick: Action | None = None) -> None:
        """Runs until nothing is left to happen; `on_tick` is called every some thousand actions."""
        num_actions = 0
        while self._heap:
            self.now_s, _, action = heappop(self._heap)
            action()
            num_actions += 1
            if on_tick is not None and num_actions % _ACTIONS_PER_TICK == 0:
                on_tick()


class DeviceClock:
    """A device's time: virtual time, and inside a step what the step has taken so far."""

    def __init__(self, events: EventQueue) -> None:
        self._events = events
        self._ahead_s = 0.0
        self.busy_s = 0.0

    def __call__(self) -> float:
        return self._events.now_s + self._ahead_s

    def work(self, seconds: float) -> None:
        """The device computes for so long."""
        self._ahead_s += seconds
        self.busy_s += seconds

    def take_step(self) -> float:
        """Ends a step: returns how far the device is ahead, and counts from now again."""
        ahead_s, self._ahead_s = self._ahead_s, 0.0
        return ahead_s
