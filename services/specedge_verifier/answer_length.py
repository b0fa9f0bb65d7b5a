"""How long answers still get, learnt from those that have ended."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from specedge.node_store import FloatArray

_NUM_KEPT = 256


class AnswerLengths:
    """Expected remaining lengths, by the Kaplan-Meier estimate of how long answers last.

    An answer that was cut at its `max_tokens` says only that it would have become longer: where all are, the estimate
    is what is left to `max_tokens`. One answer that never ends is always among them, so that nothing is ever certain.
    """

    def __init__(self) -> None:
        self._ended: deque[tuple[int, bool]] = deque(maxlen=_NUM_KEPT)
        self._is_changed = False
        self._ends = np.zeros(1)  # lengths at which answers have ended, ascending, 0 first
        self._surviving = np.ones(1)  # share that becomes longer than each
        self._areas = np.zeros(1)  # below the surviving share, up to each

    def observe(self, num_tokens: int, is_cut: bool) -> None:
        """An answer has ended with so many tokens; `is_cut` says that they were all it might have."""
        self._ended.append((num_tokens, is_cut))
        self._is_changed = True

    def remaining(self, num_generated: Sequence[int], max_tokens: Sequence[int]) -> FloatArray:
        """Tokens that answers of so many still get on average.

        Args:
            num_generated: [num_answers] tokens they have.
            max_tokens: [num_answers] the most they may have.
        """
        if self._is_changed:
            self._estimate()
        start, end = np.array(num_generated, dtype=np.float64), np.array(max_tokens, dtype=np.float64)
        shares = self._surviving[np.searchsorted(self._ends, start, side="right") - 1]
        return np.maximum(self._area(end) - self._area(start), 0.0) / shares

    def _area(self, lengths: FloatArray) -> FloatArray:
        """Below the surviving share, up to each length."""
        beyond = np.maximum(lengths - self._ends[-1], 0.0) * self._surviving[-1]
        return np.asarray(np.interp(lengths, self._ends, self._areas) + beyond)

    def _estimate(self) -> None:
        self._is_changed = False
        lengths = np.array([length for length, _ in self._ended])
        is_whole = np.array([not is_cut for _, is_cut in self._ended])
        ends, counts = np.unique(lengths[is_whole], return_counts=True)
        at_risk = 1 + (lengths[np.newaxis, :] >= ends[:, np.newaxis]).sum(axis=1)
        surviving = np.cumprod(1 - counts / at_risk)
        if not len(ends) or ends[0] > 0:
            ends, surviving = np.concatenate(([0], ends)), np.concatenate(([1.0], surviving))
        self._ends, self._surviving = ends.astype(np.float64), surviving
        self._areas = np.concatenate(([0.0], np.cumsum(np.diff(self._ends) * surviving[:-1])))
