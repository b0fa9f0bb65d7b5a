"""When to run and when to wait for drafts: pure functions of what is ready and what is predicted.

Rule 1  Work that drafts cannot improve (prefill, sessions without a drafter) never waits.
Rule 2  `ready` (default) runs what is ready. It lets something ready wait only while the prediction says that a larger
        group pays, and never longer than half a plain decode step since the device became free.
Rule 3  A session with nothing but its root is fillable: it rides along in any step that runs, and starts one of its
        own when its draft is predicted to come later than that step would end: until then a plain step costs no time,
        and drafts in flight survive it when they guessed right. So no session is slower than plain decoding, and no
        edge can stall one.
Rule 4  `static` and `dynamic` are the published alternatives, kept for comparison: both leave sessions without drafts
        waiting, `static` until every session is ready, `dynamic` until one is; both give up after `stall_s`.
"""

from dataclasses import dataclass
from enum import StrEnum
from math import inf

import numpy as np

from specedge_verifier.step_time import StepTime


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
        arrivals_s: predicted seconds until the drafts of each fillable session, ascending; inf where unknown or late.
        mean_gap_s: mean seconds from a verdict to the next draft over the decoding sessions; inf where unknown.
        idle_s: seconds since the device became free.
    """

    has_urgent: bool
    num_ready: int
    arrivals_s: tuple[float, ...]
    mean_gap_s: float
    idle_s: float


@dataclass(frozen=True, slots=True)
class Decision:
    """Run now (with or without the fillable sessions), or look again in `wait_s` seconds or on news."""

    run: bool
    fill: bool
    wait_s: float = 0.0


RUN_ALL = Decision(run=True, fill=True)


def decide(batch_type: BatchType, readiness: Readiness, step_time: StepTime, stall_s: float) -> Decision:
    """Apply the rule named by `batch_type`; `stall_s` bounds the published ones."""
    if batch_type is BatchType.READY:
        return _ready(readiness, step_time)
    num_fillable = len(readiness.arrivals_s)
    enough = num_fillable == 0 if batch_type is BatchType.STATIC else readiness.num_ready > 0
    if num_fillable and readiness.idle_s >= stall_s:
        return RUN_ALL
    if readiness.has_urgent or enough:
        return Decision(run=True, fill=False)
    return Decision(run=False, fill=False, wait_s=stall_s - readiness.idle_s)


def _ready(readiness: Readiness, step_time: StepTime) -> Decision:
    if readiness.has_urgent or not readiness.arrivals_s:
        return RUN_ALL
    if readiness.num_ready:
        missing, patience = target_group_size(readiness, step_time) - readiness.num_ready, 0.5
        if missing <= 0:
            return RUN_ALL
    else:
        missing, patience = 1, 1.0
    step_s = step_time.seconds(readiness.num_ready + len(readiness.arrivals_s))
    patience_s = patience * step_s - readiness.idle_s
    needed_s = readiness.arrivals_s[min(missing, len(readiness.arrivals_s)) - 1]
    if needed_s > patience_s:
        return RUN_ALL
    return Decision(run=False, fill=False, wait_s=min(patience_s, needed_s + 0.5 * step_s))


def target_group_size(readiness: Readiness, step_time: StepTime) -> int:
    """Sessions to gather before a step: N/m for the number of interleaved groups m with the shortest cycle.

    m groups take turns: a cycle lasts m steps of N/m sessions, but at least one step and the gap until a group's next
    drafts arrive.
    """
    num_sessions = readiness.num_ready + len(readiness.arrivals_s)
    if readiness.mean_gap_s == inf:
        return 1
    num_groups = np.arange(1, num_sessions + 1)
    sizes = -(-num_sessions // num_groups)
    step_s = step_time.predict(sizes)
    cycle_s = np.maximum(num_groups * step_s, step_s + readiness.mean_gap_s)
    return int(sizes[np.argmin(cycle_s)])
