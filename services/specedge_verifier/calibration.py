"""What a drafter's scores are worth: path probability as accepted, learnt online, per drafter.

How late a drafter's drafts come is kept beside it, so that its next session need not learn it again.

Scores are cut into bins of equal width in log-probability. Each bin keeps a decaying count of verified and accepted
nodes and starts from the drafter's own claim. Isotonic regression (pool adjacent violators, weighted by what each bin
has seen) keeps the calibrated probability non-increasing along the bins, so that ordering nodes by it stays
ancestor-closed.
"""

from collections.abc import Sequence
from math import inf

import numpy as np
import numpy.typing as npt

from specedge.node_store import FloatArray, IntArray

_BIN_WIDTH = 0.5  # nats
_NUM_BINS = 24
_CENTRES = _BIN_WIDTH * (np.arange(_NUM_BINS) + 0.5)
_CLAIMED = np.exp(-_CENTRES)
_PRIOR_WEIGHT = 8.0  # verified nodes the drafter's own claim counts for
_PRIOR_ACCEPTED = _PRIOR_WEIGHT * _CLAIMED
_MAX_WEIGHT = 400.0
_AGE = 0.999  # per step, so that a drafter once found worthless is tried again
_MAX_FITS = 8  # per step; beyond so many drafters each one's curve follows a few steps late


class Drafter:
    """One known drafter.

    Attributes:
        row: where its bins are kept.
        late_s: what its last session knew of its gap (`DraftGap.late_s`); inf before any did.
    """

    __slots__ = ("late_s", "row")

    def __init__(self, row: int) -> None:
        self.row = row
        self.late_s = inf


class Calibrations:
    """Maps scores to acceptance probabilities, for at most `max_drafters`; the one unused longest makes room.

    The bins of all drafters are one array, so that a step costs a few array operations however many drafters it has. So
    are the curves last fitted to them.
    """

    def __init__(self, max_drafters: int = 1024) -> None:
        self._max_drafters = max_drafters
        self._drafters: dict[str, Drafter] = {}
        self._verified = np.zeros((max_drafters, _NUM_BINS))
        self._accepted = np.zeros((max_drafters, _NUM_BINS))
        self._curves = np.zeros((max_drafters, _NUM_BINS))  # acceptance probability at each bin's centre
        self._drops = np.zeros((max_drafters, _NUM_BINS))  # by how much it falls until the next bin's
        self._fitted_at = np.zeros(max_drafters, dtype=np.int64)
        self._num_observed = 0

    def of(self, drafter_id: str) -> Drafter:
        """The drafter with this id, now the one used last."""
        drafter = self._drafters.pop(drafter_id, None)
        if drafter is None:
            row = len(self._drafters)
            if row == self._max_drafters:
                row = self._drafters.pop(next(iter(self._drafters))).row
            drafter = Drafter(row)
            self._verified[row] = self._accepted[row] = 0.0
            self._fitted_at[row] = -1
            self._fit(np.array([row]))
        self._drafters[drafter_id] = drafter
        return drafter

    def probabilities(
        self, drafter_ids: Sequence[str], counts: Sequence[int] | IntArray, scores: FloatArray
    ) -> FloatArray:
        """Acceptance probability of nodes with these path log-probabilities, non-decreasing in score per drafter.

        Args:
            drafter_ids: per session.
            counts: per session, how many nodes it has.
            scores: [num_nodes] the sessions' nodes end to end.
        """
        depths = np.minimum(np.maximum(scores / -_BIN_WIDTH - 0.5, 0.0), _NUM_BINS - 1)  # in bins from the first centre
        bins = depths.astype(np.int64)
        depths -= bins
        bins += np.repeat(_NUM_BINS * np.array(self._rows(drafter_ids)), counts)
        values: FloatArray = self._curves.take(bins) - self._drops.take(bins) * depths
        return values

    def observe(
        self, drafter_ids: Sequence[str], counts: Sequence[int] | IntArray, scores: FloatArray, accepted: npt.ArrayLike
    ) -> None:
        """Learn from one step's verified nodes, and fit the curves that were fitted longest ago.

        Args:
            drafter_ids, counts: as for `probabilities`; a drafter without a verified node may get a new curve too.
            scores: [num_nodes] path log-probabilities as the drafters claimed them.
            accepted: [num_nodes] whether each was on the accepted path.
        """
        index: dict[int, int] = {}
        of_session = [index.setdefault(row, len(index)) for row in self._rows(drafter_ids)]
        rows, owners = np.array([*index]), np.repeat(of_session, counts)
        shape = len(rows), _NUM_BINS
        cells = owners * _NUM_BINS + np.minimum((-scores / _BIN_WIDTH).astype(np.int64), _NUM_BINS - 1)
        hits = np.asarray(accepted, dtype=np.float64)
        verified = self._verified[rows] + np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
        right = self._accepted[rows] + np.bincount(cells, hits, shape[0] * shape[1]).reshape(shape)
        shrink = np.minimum(1.0, _MAX_WEIGHT / np.maximum(verified, 1.0))
        self._verified[rows] = verified * shrink
        self._accepted[rows] = right * shrink
        self._num_observed += 1
        self._fit(rows if len(rows) <= _MAX_FITS else rows[self._fitted_at[rows].argsort(kind="stable")[:_MAX_FITS]])

    def age(self) -> None:
        """Forget a little; called once per step."""
        num_drafters = len(self._drafters)
        self._verified[:num_drafters] *= _AGE
        self._accepted[:num_drafters] *= _AGE

    def _rows(self, drafter_ids: Sequence[str]) -> list[int]:
        known = self._drafters
        return [(known.get(drafter_id) or self.of(drafter_id)).row for drafter_id in drafter_ids]

    def _fit(self, rows: IntArray) -> None:
        weights = self._verified[rows] + _PRIOR_WEIGHT
        curves = non_increasing((self._accepted[rows] + _PRIOR_ACCEPTED) / weights, weights)
        self._curves[rows] = curves
        self._drops[rows, :-1] = curves[:, :-1] - curves[:, 1:]
        self._fitted_at[rows] = self._num_observed


def non_increasing(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Per row the non-increasing sequence nearest to `values` in weighted least squares; [num_rows, num_bins] each."""
    result = values.copy()
    for row in np.flatnonzero((values[:, 1:] > values[:, :-1]).any(axis=1)).tolist():
        pools: list[tuple[float, float, int]] = []  # mean, weight, number of bins
        for value, weight in zip(values[row].tolist(), weights[row].tolist(), strict=True):
            num_bins = 1
            while pools and pools[-1][0] < value:
                mean, before, num_before = pools.pop()
                value = (mean * before + value * weight) / (before + weight)
                weight += before
                num_bins += num_before
            pools.append((value, weight, num_bins))
        result[row] = [mean for mean, _, num_bins in pools for _ in range(num_bins)]
    return result
