"""When one of the requests that run will have ended, by how long those before took. Pure: the caller tells the time."""

from typing import Final

MIN_RETRY_AFTER_S: Final = 0.25
MAX_RETRY_AFTER_S: Final = 60.0
_UNKNOWN_S: Final = 1.0  # before any has ended
_WEIGHT: Final = 0.1  # of the last one in the moving average


class Turnaround:
    """Learns from requests that have ended."""

    def __init__(self) -> None:
        self._mean_s: float | None = None

    def ended(self, duration_s: float) -> None:
        """One has, after so long."""
        before_s = duration_s if self._mean_s is None else self._mean_s
        self._mean_s = before_s + _WEIGHT * (duration_s - before_s)

    def next_end_s(self, num_running: int) -> float:
        """Until one of so many that run will have: they are at any stage of their way."""
        expected_s = _UNKNOWN_S if self._mean_s is None else self._mean_s / max(1, num_running)
        return min(max(expected_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)
