"""`python -m specedge_bench.pace.process PARENT PAIR VERIFY_MS DRAFT_MS verifier|edge ...`: a service, paced.

It is the process that `specedge verifier` or `specedge edge` starts, with other runners in the place of the models'.
"""

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any
from unittest.mock import patch

from specedge.model.runner import ModelRunner
from specedge_bench.pace.modelled_pair import ModelledDraft, ModelledTarget
from specedge_bench.pace.runner import PacedRunner
from specedge_cli import child

_APPS = {"verifier": "specedge_verifier.app", "edge": "edge_agent.app"}
_RUNNERS: dict[str, tuple[type[PacedRunner], type[PacedRunner]]] = {
    "embedded": (PacedRunner, PacedRunner),
    "modelled": (ModelledTarget, ModelledDraft),
}
"""By pair: of the target and of the draft model."""


def runners(pair: str, command: str, verify_s: float, draft_s: float) -> Callable[[Any, int], ModelRunner]:
    """What makes a process's runners: a verifier loads the target first and perhaps a draft model after it."""
    target, draft = _RUNNERS[pair]
    kinds = iter([partial(target, forward_s=verify_s)] if command == "verifier" else [])

    def make(model: Any, num_slots: int) -> ModelRunner:
        kind = next(kinds, None) or partial(draft, forward_s=draft_s)
        return kind(model, num_slots)

    return make


def main(arguments: list[str]) -> int:
    parent, pair, verify_ms, draft_ms, *command = arguments
    app = import_module(_APPS[command[0]])
    make_runner = runners(pair, command[0], float(verify_ms) / 1e3, float(draft_ms) / 1e3)
    with patch.object(app, "run", partial(app.run, make_runner=make_runner)):
        return child.main([parent, *command])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
