"""The step log: one line of JSON per engine step, for benchmarks and for looking closely at a running verifier."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from specedge.errors import InvalidRequest
from specedge_verifier.engine import EngineObserver
from specedge_verifier.step_report import StepReport

_MS = 1e3


class StepLog:
    """Appends to a file, line by line; implements `EngineObserver`. Raises InvalidRequest when it cannot be opened."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("a", buffering=1, encoding="utf-8")
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
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")


class Observers:
    """Several observers as one; implements `EngineObserver`."""

    def __init__(self, observers: Sequence[EngineObserver]) -> None:
        self._observers = observers

    def step(self, report: StepReport) -> None:
        """Passes it on to each."""
        for observer in self._observers:
            observer.step(report)
