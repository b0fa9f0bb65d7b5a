"""How far to trust the draft's scores: the temperature tau that makes their softmax predict the committed tokens.

Under shared noise, draft and target draw the same token when their noisy scores agree; log_softmax(scores / tau) turns
the draft's noisy scores into the probability of that. tau depends on how close the two models are, so it is fitted
while running: each committed token says how likely every tau of a small grid had made it.
"""

from math import log

import numpy as np

from specedge.drafting.growth import Candidates, FloatArray

TAUS = tuple(4 / quarters for quarters in (8, 6, 5, 4, 3, 2))
"""The grid. Inverse taus are whole numbers of quarters, so one exponential serves them all (see ranking)."""

_LEAST_PROBABILITY = 1e-6


class TauEstimate:
    """The tau of a grid under which the committed tokens have been most likely.

    Args:
        initial: the tau used until `min_observations` tokens have been seen; one of the grid.
        memory: tokens over which the likelihoods are averaged, exponentially.
    """

    def __init__(self, *, initial: float = 1.0, memory: int = 1000, min_observations: int = 30) -> None:
        self.index = TAUS.index(initial)
        self._mean = np.zeros(len(TAUS))
        self._num_observations = 0
        self._memory = memory
        self._min_observations = min_observations

    @property
    def value(self) -> float:
        return TAUS[self.index]

    def observe(self, candidates: Candidates, token: int) -> None:
        """Learns from the token committed after a node that had these candidates."""
        self._num_observations += 1
        weight = 1.0 / min(self._num_observations, self._memory)
        self._mean += weight * (log_likelihoods(candidates, token) - self._mean)
        if self._num_observations >= self._min_observations:
            self.index = int(np.argmax(self._mean))


def log_likelihoods(candidates: Candidates, token: int) -> FloatArray:
    """Log-probability of the token under each tau of the grid; all tokens outside the candidates count as one event.

    Returns:
        [num_taus].
    """
    log_probs = candidates.scores[:, None] / np.array(TAUS) - candidates.log_partitions  # [width, num_taus]
    if token in candidates.token_ids:
        likelihoods: FloatArray = log_probs[candidates.token_ids.index(token)]
    else:
        likelihoods = np.log(np.maximum(1.0 - np.exp(log_probs).sum(axis=0), _LEAST_PROBABILITY))
    clipped: FloatArray = np.maximum(likelihoods, log(_LEAST_PROBABILITY))
    return clipped
