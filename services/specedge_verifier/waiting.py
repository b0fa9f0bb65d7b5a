"""When to run and when to wait for drafts: pure functions of what is ready.

Rule 1  Work that drafts cannot improve (prefill, sessions without a drafter) never waits.
Rule 2  `ready` (default) never waits: a session with nothing but its root takes a plain decode step in every step that
        runs. So no session is slower than plain decoding, no edge can stall one, and drafts in flight survive a plain
        step when they guessed right.
Rule 3  `static` and `dynamic` are the published alternatives, kept for comparison: both leave sessions without drafts
        waiting, `static` until every session is ready, `dynamic` until one is; both give up after `stall_s`.
"""

from dataclasses import dataclass
from enum import StrEnum
from math import inf


class BatchType(StrEnum):
    """Names as published."""

    READY = "ready"
    STATIC = "static"
    DYNAMIC = "dynamic"


@dataclass(frozen=True, slots=True)
class Readiness:
    """What a waiting rule may look at.

    Attributes:
        has_urgent: some work gains nothing from waiting (rule 1).
        num_ready: decoding sessions with draft nodes at hand.
        num_fillable: decoding sessions with nothing but their root.
        idle_s: seconds since the device became free.
    """

    has_urgent: bool
    num_ready: int
    num_fillable: int
    idle_s: float


@dataclass(frozen=True, slots=True)
class Decision:
    """Run now (with or without the fillable sessions), or look again in `wait_s` seconds or on news."""

    run: bool
    fill: bool
    wait_s: float = 0.0


RUN_ALL = Decision(run=True, fill=True)
REST = Decision(run=False, fill=False, wait_s=inf)


def decide(batch_type: BatchType, readiness: Readiness, stall_s: float) -> Decision:
    """Apply the rule named by `batch_type`; `stall_s` bounds the published ones."""
    if batch_type is BatchType.READY or not readiness.num_fillable or readiness.idle_s >= stall_s:
        return RUN_ALL
    if readiness.has_urgent or (batch_type is BatchType.DYNAMIC and readiness.num_ready):
        return Decision(run=True, fill=False)
    return Decision(run=False, fill=False, wait_s=stall_s - readiness.idle_s)
