"""`python -m specedge_bench.pace.process PARENT PAIR TARGET_CURVE DRAFT_CURVE LOG verifier|edge ...`: a service, paced.

It is the process that `specedge verifier` or `specedge edge` starts, with other runners in the place of the models'.
"""

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

from specedge.model.runner import ModelRunner
from specedge_bench.curves import load_curve
from specedge_bench.pace.forward_log import ForwardLog
from specedge_bench.pace.modelled_pair import ModelledDraft, ModelledTarget
from specedge_bench.pace.pace import NO_LOG, Pace
from specedge_bench.pace.runner import PacedRunner
from specedge_cli import child

_APPS = {"verifier": "specedge_verifier.app", "edge": "edge_agent.app"}
_RUNNERS: dict[str, tuple[type[PacedRunner], type[PacedRunner]]] = {
    "embedded": (PacedRunner, PacedRunner),
    "modelled": (ModelledTarget, ModelledDraft),
}
"""By pair: of the target and of the draft model."""


def runners(pace: Pace, command: str) -> Callable[[Any, int], ModelRunner]:
    """What makes a process's runners: a verifier loads the target first and perhaps a draft model after it."""
    target, draft = _RUNNERS[pace.pair]
    target_curve, draft_curve = load_curve(pace.target), load_curve(pace.draft)
    logs = {model: None if pace.log is None else ForwardLog(pace.log, model) for model in ("target", "draft")}
    targets = iter([partial(target, curve=target_curve, on_forward=logs["target"])] if command == "verifier" else [])

    def make(model: Any, num_slots: int) -> ModelRunner:
        kind = next(targets, None) or partial(draft, curve=draft_curve, on_forward=logs["draft"])
        return kind(model, num_slots)

    return make


def main(arguments: list[str]) -> int:
    parent, pair, target, draft, log, *command = arguments
    app = import_module(_APPS[command[0]])
    make_runner = runners(Pace(target, draft, pair, None if log == NO_LOG else Path(log)), command[0])
    with patch.object(app, "run", partial(app.run, make_runner=make_runner)):
        return child.main([parent, *command])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
