"""The step log: one line of JSON per engine step, for benchmarks and for looking closely at a running verifier."""

import json
import logging
import time
from collections.abc import Sequence
from errno import ENOSPC
from os import strerror
from pathlib import Path

from specedge.errors import InvalidRequest
from specedge_verifier.engine import EngineObserver
from specedge_verifier.step_report import StepReport

logger = logging.getLogger(__name__)

_MS = 1e3


class StepLog:
    """Appends to a file, line by line; implements `EngineObserver`. Raises InvalidRequest when it cannot be opened.

    Steps that cannot be written, for want of room perhaps, are left out: the engine works on.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_left_out = 0
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
        try:
            num_written = self._file.write(line)
            if num_written != len(line):
                self._file.truncate(self._file.tell() - num_written)  # no half lines
                raise OSError(ENOSPC, strerror(ENOSPC))
        except OSError as error:
            if not self._num_left_out:
                logger.error("the step log %s cannot be written, steps are left out: %s", self._path, error.strerror)
            self._num_left_out += 1
            return
        if self._num_left_out:
            logger.warning("the step log %s is written again, without %d steps", self._path, self._num_left_out)
            self._num_left_out = 0


class Observers:
    """Several observers as one; implements `EngineObserver`."""

    def __init__(self, observers: Sequence[EngineObserver]) -> None:
        self._observers = observers

    def step(self, report: StepReport) -> None:
        """Passes it on to each."""
        for observer in self._observers:
            observer.step(report)
