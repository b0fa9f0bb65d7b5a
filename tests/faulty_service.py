"""`python tests/faulty_service.py FAULT_FILE PARENT verifier|edge ...`: a service whose model fails as a file says.

It is the process that `specedge verifier` or `specedge edge` starts. The file holds a word, and may be written at any
time: "hang" blocks the next forward for good, "raise" fails it, "memory N" asks for more memory than there is where a
forward has more than N rows. SIGUSR1 blocks the event loop, and SIGUSR2 moves the wall clock on by a day.
"""

import signal
import sys
import threading
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from specedge.model.batch import IntArray, PackedBatch
from specedge.model.engines import make_runner
from specedge_cli import child

_APPS = {"verifier": "specedge_verifier.app", "edge": "edge_agent.app"}
_DAY_S = 86400.0


class FaultyRunner:
    """Implements `ModelRunner`, as long as nothing is wrong."""

    def __init__(self, model: Any, num_slots: int, *, fault: Path) -> None:
        self._runner = make_runner(model, num_slots)
        self.device, self.vocab_size = self._runner.device, self._runner.vocab_size
        self.num_slots, self.cache = self._runner.num_slots, self._runner.cache
        self._fault = fault

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        logits = self._runner.forward(batch)
        kind, _, limit = self._fault.read_text().partition(" ") if self._fault.exists() else ("", "", "")
        if kind == "hang":
            threading.Event().wait()
        if kind == "raise":
            raise RuntimeError("the device was lost")
        if kind == "memory" and len(batch.token_ids) > int(limit):
            torch.empty(2**60)
        return logits

    def copy_kv(self, source_slots: IntArray, target_slots: IntArray) -> None:
        self._runner.copy_kv(source_slots, target_slots)


def block(number: int, frame: object) -> None:
    """Runs on the main thread, and the event loop with it."""
    while True:
        time.sleep(3600)


def jump(number: int, frame: object) -> None:
    """The wall clock tells another day from now on."""
    read = time.time
    time.time = lambda: read() + _DAY_S


def main(arguments: list[str]) -> int:
    fault, parent, *command = arguments
    app = import_module(_APPS[command[0]])
    signal.signal(signal.SIGUSR1, block)
    signal.signal(signal.SIGUSR2, jump)
    with patch.object(app, "run", partial(app.run, make_runner=partial(FaultyRunner, fault=Path(fault)))):
        return child.main([parent, *command])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
