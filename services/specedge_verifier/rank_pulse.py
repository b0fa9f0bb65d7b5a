"""Notices, within a bounded time, that a rank is gone.

Every second all ranks add up one number, each on a thread and a group of its own, so that it also works while they wait
for the next step or are stuck in one. A process that has ended closes its connections, which fails the others' next sum
at once; one that is frozen, or cut off, lets it run into its time limit. Whoever notices says so once.

The number is how many ranks want to stop: when all do, all stop after the same sum.
"""

import logging
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0


class RankPulse:
    """The pulse of one rank; all ranks make theirs at the same time.

    Args:
        timeout_s: how long a sum may take; a dead rank is noticed within INTERVAL_S, a frozen one within both together.
        on_lost: called once, on the pulse's thread, with the reason.
    """

    def __init__(self, timeout_s: float, on_lost: Callable[[str], object]) -> None:
        self._size = dist.get_world_size()
        self._group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self._timeout_s = timeout_s
        self._on_lost = on_lost
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rank pulse", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Wait until all ranks stop; from now on one that is gone is no news."""
        self._stopping.set()
        self._thread.join(INTERVAL_S + self._timeout_s)

    def _run(self) -> None:
        num_stopping = torch.zeros(1)
        while int(num_stopping) < self._size:
            num_stopping.fill_(self._stopping.wait(INTERVAL_S))
            try:
                dist.all_reduce(num_stopping, group=self._group)
            except RuntimeError as error:
                if not self._stopping.is_set():
                    self._on_lost(" ".join(str(error).split()))
                return
