"""`python -m benchmarks.speculation.paced_process PARENT PAIR FORWARD_MS verifier|edge ...`: a service, paced.

It is the process that `specedge verifier` or `specedge edge` starts, with another runner in the place of the model's.
"""

import sys
from functools import partial
from importlib import import_module
from unittest.mock import patch

from benchmarks.speculation.modelled_pair import ModelledDraft, ModelledTarget
from benchmarks.speculation.paced import PacedRunner
from specedge_cli import child

_APPS = {"verifier": "specedge_verifier.app", "edge": "edge_agent.app"}
_RUNNERS = {
    ("embedded", "verifier"): PacedRunner,
    ("embedded", "edge"): PacedRunner,
    ("modelled", "verifier"): ModelledTarget,
    ("modelled", "edge"): ModelledDraft,
}


def main(arguments: list[str]) -> int:
    parent, pair, forward_ms, *command = arguments
    app = import_module(_APPS[command[0]])
    make_runner = partial(_RUNNERS[pair, command[0]], forward_s=float(forward_ms) / 1e3)
    with patch.object(app, "load", partial(app.load, make_runner=make_runner)):
        return child.main([parent, *command])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
