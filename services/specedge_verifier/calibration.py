"""What a drafter's scores are worth: path probability as accepted, learnt online, per drafter.

How late a drafter's drafts come is kept beside it, so that its next session need not learn it again.

Scores are cut into bins of equal width in log-probability. Each bin keeps a decaying count of verified and accepted
nodes and starts from the drafter's own claim. Isotonic regression (pool adjacent violators, weighted by what each bin
has seen) keeps the calibrated probability non-increasing along the bins, so that ordering nodes by it stays
ancestor-closed.
"""

from math import inf

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_BIN_WIDTH = 0.5  # nats
_NUM_BINS = 24
_PRIOR_WEIGHT = 8.0  # verified nodes the drafter's own claim counts for
_MAX_WEIGHT = 400.0
_AGE = 0.999  # per step, so that a drafter once found worthless is tried again


class Calibration:
    """Maps the scores of one drafter to acceptance probabilities.

    Attributes:
        late_s: what the drafter's last session knew of its gap (`DraftGap.late_s`); inf before any did.
    """

    def __init__(self) -> None:
        self.late_s = inf
        self._centres = _BIN_WIDTH * (np.arange(_NUM_BINS) + 0.5)
        self._claimed = np.exp(-self._centres)
        self._verified = np.zeros(_NUM_BINS)
        self._accepted = np.zeros(_NUM_BINS)
        self._curve = self._claimed
        self._is_current = True

    def probabilities(self, scores: npt.ArrayLike) -> FloatArray:
        """Acceptance probability of nodes with these path log-probabilities (any shape), non-decreasing in score."""
        if not self._is_current:
            weights = self._verified + _PRIOR_WEIGHT
            self._curve = non_increasing((self._accepted + _PRIOR_WEIGHT * self._claimed) / weights, weights)
            self._is_current = True
        return np.asarray(np.interp(-np.asarray(scores), self._centres, self._curve), dtype=np.float64)

    def observe(self, scores: npt.ArrayLike, accepted: npt.ArrayLike) -> None:
        """Learn from one session's verified nodes.

        Args:
            scores: [num_nodes] path log-probabilities as the drafter claimed them.
            accepted: [num_nodes] whether each was on the accepted path.
        """
        bins = np.minimum((-np.asarray(scores) / _BIN_WIDTH).astype(np.int64), _NUM_BINS - 1)
        self._verified += np.bincount(bins, minlength=_NUM_BINS)
        self._accepted += np.bincount(bins, weights=np.asarray(accepted, dtype=np.float64), minlength=_NUM_BINS)
        shrink = np.minimum(1.0, _MAX_WEIGHT / np.maximum(self._verified, 1.0))
        self._verified *= shrink
        self._accepted *= shrink
        self._is_current = False

    def age(self) -> None:
        """Forget a little; called once per step."""
        self._verified *= _AGE
        self._accepted *= _AGE
        self._is_current = False


def non_increasing(values: FloatArray, weights: FloatArray) -> FloatArray:
    """The non-increasing sequence nearest to `values` in weighted least squares (pool adjacent violators)."""
    pools: list[list[float]] = []  # value, weight, length
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        pools.append([value, weight, 1])
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            value, weight, length = pools.pop()
            last = pools[-1]
            last[0] = (last[0] * last[1] + value * weight) / (last[1] + weight)
            last[1] += weight
            last[2] += length
    return np.repeat([pool[0] for pool in pools], [int(pool[2]) for pool in pools])


class Calibrations:
    """One Calibration per drafter id, at most `max_drafters`; the one unused longest makes room."""

    def __init__(self, max_drafters: int = 64) -> None:
        self._max_drafters = max_drafters
        self._by_drafter: dict[str, Calibration] = {}

    def of(self, drafter_id: str) -> Calibration:
        calibration = self._by_drafter.pop(drafter_id, None) or Calibration()
        self._by_drafter[drafter_id] = calibration
        if len(self._by_drafter) > self._max_drafters:
            del self._by_drafter[next(iter(self._by_drafter))]
        return calibration

    def age(self) -> None:
        for calibration in self._by_drafter.values():
            calibration.age()
