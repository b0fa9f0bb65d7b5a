"""Step time as a function of rows, learnt online.

A piecewise linear curve over powers of two; predictions are made monotone, because more rows never cost less. The draft
budget asks it what another draft node costs.

Rule 1  Each observation corrects the two knots around it, weighted by how near they are.
Rule 2  A knot just above the steps that run is due for an observation now and then (`due_rows`), and one that has not
        been observed lately learns faster: a size that was slow once, on a busy host, would be slow for ever.
"""

from bisect import bisect_left, bisect_right

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_LEARNING_RATE = 0.1
_MAX_CORRECTION = 1.0  # one observation moves a knot by at most its own prediction: a page fault is no trend
_LEAST_LEFT = 0.25  # of a knot, whatever its neighbour was wrong by
_STALE_RATE = 0.5  # of learning, for a knot that is stale
_STALE_STEPS = 64  # without an observation
_DUE_EVERY = 128  # steps: one of them may have more rows than pay


class StepTime:
    """Predicts seconds per step.

    Args:
        max_rows: the largest step the scheduler may make, in rows.
        samples: (rows, seconds) measured at warm-up; at least one.
    """

    def __init__(self, max_rows: int, samples: list[tuple[int, float]]) -> None:
        if not samples:
            raise ValueError("the step time curve needs at least one measured step")
        num_knots = max(1, int(np.ceil(np.log2(max(2, max_rows))))) + 1
        self._rows = 2.0 ** np.arange(num_knots)
        self._knots: list[float] = self._rows.tolist()
        rows, seconds = (np.array(column, dtype=np.float64) for column in zip(*sorted(samples), strict=True))
        self._seconds = np.interp(self._rows, rows, seconds)
        above = self._rows > rows[-1]  # beyond the last sample time grows in proportion, never faster than measured
        self._seconds[above] = seconds[-1] * self._rows[above] / rows[-1]
        self._curve = np.maximum.accumulate(self._seconds)
        self._num_observed = 0
        self._observed_at = [0] * num_knots  # of the latest observation, counted in these

    def predict(self, num_rows: npt.NDArray[np.int64]) -> FloatArray:
        """Seconds for steps of `num_rows` rows (an array), non-decreasing in rows."""
        return np.asarray(np.interp(num_rows, self._rows, self._curve), dtype=np.float64)

    def seconds(self, num_rows: float) -> float:
        """Seconds for one step of `num_rows` rows."""
        return float(np.interp(num_rows, self._rows, self._curve))

    def observe(self, num_rows: int, seconds: float) -> None:
        """Learn from one finished step."""
        upper = min(max(bisect_left(self._knots, num_rows), 1), len(self._knots) - 1)
        lower = upper - 1
        span = self._knots[upper] - self._knots[lower]
        weight = min(max((num_rows - self._knots[lower]) / span, 0.0), 1.0)
        nearest = upper if weight >= 0.5 else lower
        self._num_observed += 1
        rate = _STALE_RATE if self._is_stale(nearest) else _LEARNING_RATE
        known = self._seconds
        predicted = (1 - weight) * float(known[lower]) + weight * float(known[upper])
        correction = rate * min(seconds - predicted, _MAX_CORRECTION * predicted)
        norm = weight**2 + (1 - weight) ** 2
        for knot, part in ((lower, 1 - weight), (upper, weight)):
            known[knot] = max(known[knot] + correction * part / norm, _LEAST_LEFT * known[knot])
        self._observed_at[nearest] = self._num_observed
        np.maximum.accumulate(known, out=self._curve)

    def due_rows(self, num_rows: int) -> int:
        """Rows that a step of at least `num_rows` should have so that the next knot is observed; else `num_rows`."""
        above = bisect_right(self._knots, num_rows)
        if self._num_observed % _DUE_EVERY or above == len(self._knots):
            return num_rows
        return int(self._knots[above]) if self._is_stale(above) else num_rows

    def _is_stale(self, knot: int) -> bool:
        return self._num_observed - self._observed_at[knot] > _STALE_STEPS
