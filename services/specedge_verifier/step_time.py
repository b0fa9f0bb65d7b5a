"""Step time as a function of rows, learnt online.

A piecewise linear curve over powers of two. Each observation corrects the two knots around it, weighted by how near
they are; predictions are made monotone, because more rows never cost less. The draft budget asks it what another
draft node costs.
"""

from bisect import bisect_left

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_LEARNING_RATE = 0.1
_MAX_CORRECTION = 1.0  # one observation moves a knot by at most its own prediction: a page fault is no trend


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
        predicted = (1 - weight) * float(self._seconds[lower]) + weight * float(self._seconds[upper])
        error = min(seconds - predicted, _MAX_CORRECTION * predicted)
        norm = weight**2 + (1 - weight) ** 2
        self._seconds[lower] += _LEARNING_RATE * error * (1 - weight) / norm
        self._seconds[upper] += _LEARNING_RATE * error * weight / norm
        np.maximum.accumulate(self._seconds, out=self._curve)
