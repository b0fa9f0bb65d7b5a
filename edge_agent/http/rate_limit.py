"""How much one API key may do: requests per minute, and requests at a time. Pure: the caller tells the time."""

from dataclasses import dataclass
from typing import Literal

from edge_agent.http.turnaround import Turnaround

RefusalReason = Literal["rate", "concurrency"]


class TokenBucket:
    """A bucket that holds one minute's requests and gains them back evenly.

    Law: in any minute at most `2 * per_minute` requests are let through, and `per_minute` in the long run.

    Args:
        per_minute: requests per minute, and the most that come at once.
        now_s: the time, in seconds of any steady clock.
    """

    def __init__(self, per_minute: int, now_s: float) -> None:
        self._per_minute = per_minute
        self._level = float(per_minute)
        self._filled_s = now_s

    @property
    def per_minute(self) -> int:
        return self._per_minute

    def resize(self, per_minute: int, now_s: float) -> None:
        """Sets another rate; what is in the bucket stays, as far as it fits."""
        self._fill(now_s)
        self._per_minute = per_minute
        self._level = min(self._level, per_minute)

    def take(self, now_s: float) -> float:
        """Takes one request out of the bucket.

        Returns:
            0 if there was one, else the seconds until there will be one.
        """
        self._fill(now_s)
        if self._level < 1:
            return (1 - self._level) * 60 / self._per_minute
        self._level -= 1
        return 0.0

    def remaining(self, now_s: float) -> int:
        """Requests that would be let through at once."""
        self._fill(now_s)
        return int(self._level)

    def reset_s(self, now_s: float) -> float:
        """Seconds until the bucket is full."""
        self._fill(now_s)
        return (self._per_minute - self._level) * 60 / self._per_minute

    def _fill(self, now_s: float) -> None:
        gained = max(0.0, now_s - self._filled_s) * self._per_minute / 60
        self._level = min(float(self._per_minute), self._level + gained)
        self._filled_s = now_s


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not let through now.

    Args:
        reason: which limit it met.
        message: names the limit.
        retry_after_s: when there may be room again.
    """

    reason: RefusalReason
    message: str
    retry_after_s: float


class KeyLimits:
    """What one key has used of its limits. A request that is refused uses nothing."""

    def __init__(self) -> None:
        self._bucket: TokenBucket | None = None
        self._num_running = 0
        self._turnaround = Turnaround()

    @property
    def num_running(self) -> int:
        return self._num_running

    def admit(self, per_minute: int | None, max_concurrent: int | None, now_s: float) -> Refusal | None:
        """Lets one request through, to be followed by `release`, or says why not.

        Args:
            per_minute: the key's requests per minute at this moment; None is any number.
            max_concurrent: the key's requests at a time at this moment; None is any number.
            now_s: the time, in seconds of any steady clock.
        """
        if max_concurrent is not None and self._num_running >= max_concurrent:
            message = f"{self._num_running} requests with this API key are being served, and {max_concurrent} are the "
            return Refusal("concurrency", message + "most at a time", self._turnaround.next_end_s(self._num_running))
        self._set_rate(per_minute, now_s)
        if self._bucket is not None and (wait_s := self._bucket.take(now_s)):
            message = f"this API key is good for {per_minute} requests per minute, which are used up; "
            return Refusal("rate", f"{message}the next one is in {wait_s:.1f} seconds", wait_s)
        self._num_running += 1
        return None

    def release(self, duration_s: float) -> None:
        """One request that was let through has ended, after so long."""
        self._num_running -= 1
        self._turnaround.ended(duration_s)

    def headers(self, now_s: float) -> list[tuple[bytes, bytes]]:
        """OpenAI's headers about the rate; none where there is no limit."""
        if self._bucket is None:
            return []
        return [
            (b"x-ratelimit-limit-requests", str(self._bucket.per_minute).encode()),
            (b"x-ratelimit-remaining-requests", str(self._bucket.remaining(now_s)).encode()),
            (b"x-ratelimit-reset-requests", spell_duration(self._bucket.reset_s(now_s)).encode()),
        ]

    def _set_rate(self, per_minute: int | None, now_s: float) -> None:
        if per_minute is None:
            self._bucket = None
        elif self._bucket is None:
            self._bucket = TokenBucket(per_minute, now_s)
        elif self._bucket.per_minute != per_minute:
            self._bucket.resize(per_minute, now_s)


def spell_duration(duration_s: float) -> str:
    """A duration as OpenAI's rate headers have it: 0s, 120ms, 17s, 6m0s."""
    if 0 < duration_s < 1:
        return f"{max(1, round(duration_s * 1000))}ms"
    minutes, seconds = divmod(-int(-duration_s // 1), 60)
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
