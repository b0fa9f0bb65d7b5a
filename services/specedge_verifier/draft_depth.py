"""How many draft steps a verifier that drafts for itself runs before each of its own: none when that does not pay.

Draft steps and verification share one device, so every draft step is paid in time. With A[i] the share of verifications
that accept at least i nodes, d draft steps bring 1 + A[1] + ... + A[d] tokens per session; the depth is the d with the
most expected tokens per second. Every so often one step more than that is tried, so that A stays known.
"""

import numpy as np
import numpy.typing as npt

from specedge_verifier.step_time import StepTime

FloatArray = npt.NDArray[np.float64]

_MEMORY = 200.0  # trees over which acceptance is averaged
_PRIOR_TREES = 4.0  # that each depth's prior counts for
_PRIOR_ACCEPTANCE = 0.7  # per further token, before anything has been seen
_TRIAL_EVERY = 32  # steps


class DraftDepth:
    """Learns what draft steps cost and bring, and decides their number.

    Args:
        max_depth: most draft steps before a step.
    """

    def __init__(self, max_depth: int) -> None:
        self.max_depth = max_depth
        self._offered = np.zeros(max_depth)
        self._accepted = np.zeros(max_depth)
        self._nodes_per_depth = 1.0
        self._draft_s: float | None = None
        self._num_decisions = 0

    @property
    def acceptance(self) -> FloatArray:
        """[max_depth] estimated share of verifications that accept at least 1, 2, ... nodes; non-increasing."""
        estimate = np.empty(self.max_depth)
        reached = 1.0
        for depth in range(self.max_depth):
            prior = reached * _PRIOR_ACCEPTANCE
            weight = self._offered[depth] + _PRIOR_TREES
            reached = min(reached, float((self._accepted[depth] + _PRIOR_TREES * prior) / weight))
            estimate[depth] = reached
        return estimate

    def decide(self, num_sessions: int, step_time: StepTime) -> int:
        """Draft steps to run before a step of `num_sessions` decoding sessions."""
        if not num_sessions:
            return 0
        self._num_decisions += 1
        if self._draft_s is None:
            return self.max_depth
        depths = np.arange(self.max_depth + 1)
        tokens = 1.0 + np.concatenate(([0.0], np.cumsum(self.acceptance)))
        num_rows = np.rint(num_sessions * (1.0 + self._nodes_per_depth * depths)).astype(np.int64)
        best = int(np.argmax(tokens / (depths * self._draft_s + step_time.predict(num_rows))))
        is_trial = self._num_decisions % _TRIAL_EVERY == 0
        return min(best + is_trial, self.max_depth)

    def drafted(self, seconds: float) -> None:
        """A draft step has taken so long."""
        self._draft_s = seconds if self._draft_s is None else self._draft_s + 0.1 * (seconds - self._draft_s)

    def verified(self, depth: int, num_nodes: int, num_accepted: int) -> None:
        """A tree of `num_nodes` nodes from `depth` draft steps was verified."""
        self._offered[:depth] += 1
        self._accepted[: min(depth, num_accepted)] += 1
        shrink = np.minimum(1.0, _MEMORY / np.maximum(self._offered, 1.0))
        self._offered *= shrink
        self._accepted *= shrink
        self._nodes_per_depth += 0.02 * (num_nodes / depth - self._nodes_per_depth)
