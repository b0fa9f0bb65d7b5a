"""Every rank but 0, from start to end: its part of the target, and what rank 0 says."""

import logging
import os
import signal
import threading
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from types import FrameType

from specedge.drafting.loading import MakeRunner
from specedge.errors import EngineDead
from specedge.model.ranks import Ranks
from specedge_verifier.mirrored import follow
from specedge_verifier.rank_pulse import RankPulse
from specedge_verifier.settings import VerifierSettings
from specedge_verifier.target_loading import load_part

logger = logging.getLogger(__name__)


class Follower:
    """One rank's work on a thread of its own, so that neither a lost rank nor a signal finds it waiting for the others.

    Args:
        settings: the same as rank 0's.
        ranks: the group.
        make_runner: makes the runner of the part.
    """

    def __init__(self, settings: VerifierSettings, ranks: Ranks, make_runner: MakeRunner) -> None:
        self._settings = settings
        self._ranks = ranks
        self._make_runner = make_runner
        self._is_loaded = False
        self._end: Future[None] = Future()

    def run(self) -> None:
        """Returns when rank 0 has said stop. SIGTERM is rank 0's business, once there is something to drain.

        Raises:
            EngineDead: a rank is gone.
            ModelLoadError: this rank's part cannot be loaded.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)
        pulse = RankPulse(self._settings.rank_timeout_s, self._lost)
        thread = threading.Thread(target=self._work, name="follower", daemon=True)
        thread.start()
        self._end.result()
        thread.join()
        pulse.stop()
        self._ranks.leave()
        logger.info("rank %d stopped", self._ranks.place.rank)

    def _work(self) -> None:
        try:
            runner = load_part(self._settings, self._ranks, self._make_runner)
            self._is_loaded = True
            follow(runner, self._ranks)
        except BaseException as error:
            self._settle(error)
        else:
            self._settle(None)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if not self._is_loaded:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _lost(self, reason: str) -> None:
        self._settle(EngineDead(f"rank {self._ranks.place.rank} has lost another rank: {reason}"))

    def _settle(self, error: BaseException | None) -> None:
        with suppress(InvalidStateError):
            if error is None:
                self._end.set_result(None)
            else:
                self._end.set_exception(error)
