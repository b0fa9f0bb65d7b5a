"""The step log: one line of JSON per engine step, for benchmarks and for looking closely at a running verifier."""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from specedge.errors import InvalidRequest
from specedge_verifier.engine import EngineObserver
from specedge_verifier.step_report import StepReport

logger = logging.getLogger(__name__)

_MS = 1e3


class StepLog:
    """Appends to a file, line by line; implements `EngineObserver`. Steps that a full disk does not take are missing.

    Raises:
        InvalidRequest: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_missing = 0
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise InvalidRequest(f"cannot write the step log {path}: {error.strerror}", "step_log") from error

    def step(self, report: StepReport) -> None:
        """Writes a finished step."""
        line = {
            "started_s": round(time.time() - report.step_s, 6),
            "num_sessions": report.num_sessions,
            "num_prefill": report.num_prefill,
            "num_nodes": report.num_nodes,
            "num_accepted": report.num_accepted,
            "num_committed": report.num_committed,
            "num_moved": report.num_moved,
            "num_kv_tokens": report.num_kv_tokens,
            "draft_ms": round(_MS * report.draft_s, 3),
            "schedule_ms": round(_MS * report.schedule_s, 3),
            "forward_ms": round(_MS * report.forward_s, 3),
            "sample_ms": round(_MS * report.sample_s, 3),
            "settle_ms": round(_MS * report.settle_s, 3),
            "accepted_depths": report.accepted_depths,
            "queue_ms": [round(_MS * queue_s, 3) for queue_s in report.queue_s],
        }
        self._append(json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        if self._num_missing:
            line = b"\n" + line  # after what a full disk may have taken of the line before
        try:
            is_whole = self._file.write(line) == len(line)
            reason = "the disk is full"
        except OSError as error:
            is_whole, reason = False, str(error)
        if not is_whole:
            if not self._num_missing:
                logger.error("step log %s: steps are missing from now on: %s", self._path, reason)
            self._num_missing += 1
        elif self._num_missing:
            logger.warning("step log %s: goes on after %d missing steps", self._path, self._num_missing)
            self._num_missing = 0


class Observers:
    """Several observers as one; implements `EngineObserver`."""

    def __init__(self, observers: Sequence[EngineObserver]) -> None:
        self._observers = observers

    def step(self, report: StepReport) -> None:
        """Passes it on to each."""
        for observer in self._observers:
            observer.step(report)
