"""Runs checks one after the other; none can hold up or break the rest."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from specedge.errors import SpecEdgeError
from specedge_cli.doctor.check import Check, Finding, Result

logger = logging.getLogger(__name__)

MIN_SECONDS = 0.05


def run_checks(
    checks: Sequence[Check],
    *,
    is_quick: bool,
    max_s: float,
    on_start: Callable[[Check], None] = lambda check: None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Result]:
    """Run every check within its own limit and the limit of them all.

    Args:
        is_quick: leave out those that are slow.
        max_s: seconds for all of them; those that are left then are skipped.
        on_start: told before a check begins.
        clock: steady time in seconds.
    """
    end_s = clock() + max_s
    for check in checks:
        if is_quick and check.is_slow:
            yield Result(check.group, Finding(check.name, "skipped", "left out by --quick"), 0.0)
            continue
        limit_s = min(check.limit_s, end_s - clock())
        if limit_s < MIN_SECONDS:
            found = f"the {max_s:g} s of the whole run were over"
            yield Result(check.group, Finding(check.name, "skipped", found, "allow more with --max-seconds"), 0.0)
            continue
        on_start(check)
        started_s = clock()
        findings = _run_one(check, limit_s)
        seconds = clock() - started_s
        for finding in findings:
            yield Result(check.group, finding, seconds)


def _run_one(check: Check, limit_s: float) -> Sequence[Finding]:
    """The findings of one check, or a finding about the check."""
    done: list[Sequence[Finding]] = []
    thread = threading.Thread(target=lambda: done.append(_guarded(check)), name=f"check {check.name}", daemon=True)
    thread.start()
    thread.join(limit_s)
    if done:
        return done[0]
    return [Finding(check.name, check.late, f"did not finish within {limit_s:.1f} s")]


def _guarded(check: Check) -> Sequence[Finding]:
    try:
        return check.run()
    except SpecEdgeError as error:
        return [Finding(check.name, "fail", str(error))]
    # What nobody thought of is this check's finding, and the others go on.
    except Exception as error:
        logger.debug("check %s", check.name, exc_info=True)
        return [Finding(check.name, "fail", f"{type(error).__name__}: {error}")]
