"""When requests are sent: by users who wait for their answers, by chance, or as a trace says."""

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

from specedge.errors import SettingsError

KNOWN_LOADS = "closed-USERS, poisson-REQUESTS_PER_S or trace=FILE"


class BadLoad(SettingsError):
    """A load point cannot be read; names it and what is known."""


@dataclass(frozen=True, slots=True)
class Load:
    """One load point; exactly one of the last three fields is set.

    Args:
        name: part of a cell's name.
        num_users: closed loop: this many users, each of whom sends the next request when the last one is answered.
        rate_per_s: open loop: mean requests per second of a Poisson process.
        times_s: open loop: arrival times in order, in seconds from the first moment of a cell.
    """

    name: str
    num_users: int | None = None
    rate_per_s: float | None = None
    times_s: tuple[float, ...] = ()

    def num_requests(self, wanted: int) -> int:
        """How many requests a cell has if `wanted` are asked for.

        In a closed loop every user sends equally many, so that all stay to the end; a trace may be shorter.
        """
        if self.num_users is not None:
            return self.num_users * math.ceil(wanted / self.num_users)
        return min(wanted, len(self.times_s)) if self.times_s else wanted

    def arrivals_s(self, num_requests: int, seed: int) -> tuple[float, ...] | None:
        """The moment of each request, in seconds from the cell's start; None in a closed loop."""
        if self.num_users is not None:
            return None
        if self.rate_per_s is None:
            return self.times_s[:num_requests]
        chance = random.Random(seed)
        moments: list[float] = []
        now_s = 0.0
        for _ in range(num_requests):
            now_s += chance.expovariate(self.rate_per_s)
            moments.append(now_s)
        return tuple(moments)


def parse_load(text: str) -> Load:
    """The load point of a name as users write it; a trace file is read.

    Raises:
        BadLoad: no such load, or a trace that cannot be read.
    """
    if text.startswith("trace="):
        return _trace(Path(text.removeprefix("trace=")))
    kind, _, value = text.partition("-")
    try:
        if kind == "closed" and int(value) >= 1:
            return Load(f"closed-{int(value)}", num_users=int(value))
        if kind == "poisson" and 0 < float(value) < math.inf:
            return Load(text, rate_per_s=float(value))
    except ValueError:
        pass
    raise BadLoad(f"load {text!r} is unknown; known are {KNOWN_LOADS}, where numbers are above 0")


def _trace(path: Path) -> Load:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise BadLoad(f"trace {path} cannot be read: {reason}") from error
    times_s = [_moment(line, f"trace {path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not times_s:
        raise BadLoad(f"trace {path} has no arrival")
    return Load(f"trace-{path.stem}", times_s=tuple(sorted(times_s)))


def _moment(line: str, place: str) -> float:
    try:
        row = json.loads(line)
        value = float(row["arrival_s"] if isinstance(row, dict) else row)
    except (ValueError, KeyError, TypeError):
        raise BadLoad(f'{place}: {line[:60]!r} is neither a time in seconds nor {{"arrival_s": seconds}}') from None
    if not 0 <= value < math.inf:
        raise BadLoad(f"{place}: an arrival at {value} s; it must be finite and at least 0")
    return value
