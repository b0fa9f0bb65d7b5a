"""What a check is, and what it finds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

State = Literal["ok", "warn", "fail", "skipped"]
Values = Mapping[str, object]
"""Numbers, texts and flags, as JSON has them."""

STATES: Final[tuple[State, ...]] = ("ok", "warn", "fail", "skipped")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Args:
        name: what was looked at, in a word or two.
        state: ok, warn (it works, and there is something better), fail (it will not work), skipped (not looked at).
        found: what is there; for skipped: why nobody looked.
        change: what to change, in plain words; empty where there is nothing to change.
        values: the numbers behind it, with units in their names, for machines.
    """

    name: str
    state: State
    found: str
    change: str = ""
    values: Values = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Check:
    """Something to look at.

    Args:
        group: the part of the report that it belongs to.
        name: what it looks at, shown while it does.
        run: does it; one finding or some.
        limit_s: how long it may take.
        is_slow: it tests or measures; a quick run leaves it out.
        late: what it means if it takes longer.
    """

    group: str
    name: str
    run: Callable[[], Sequence[Finding]]
    limit_s: float = 5.0
    is_slow: bool = False
    late: State = "fail"


@dataclass(frozen=True, slots=True)
class Result:
    """A finding, where it belongs, and how long its check took."""

    group: str
    finding: Finding
    seconds: float


def is_failure(results: Sequence[Result]) -> bool:
    """Whether something will not work."""
    return any(result.finding.state == "fail" for result in results)
