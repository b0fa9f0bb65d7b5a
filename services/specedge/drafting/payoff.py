"""Whether drafting pays: if hardly a token of the draft model is accepted, drafting rests and is tried again later.

For a session it does not where its text cannot be guessed, for all of them where verdicts come faster than drafts, as
from a small target, or when the drafter's machine has more to do than it can.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PayoffSettings:
    """When drafting is given up.

    Attributes:
        min_accepted: accepted tokens of the draft model per verdict below which drafting does not pay.
        window: verdicts over which they are averaged, exponentially; nothing is given up before.
        rest: verdicts without drafting before the next trial.
        trial: verdicts of a trial.
    """

    min_accepted: float = 0.05
    window: int = 64
    rest: int = 64
    trial: int = 8


class Payoff:
    """Counts verdicts, of one session or of many; `is_drafting` says whether to draft until the next one."""

    def __init__(self, settings: PayoffSettings) -> None:
        self._settings = settings
        self.reset()

    def reset(self) -> None:
        """Knows nothing, and drafts."""
        self._mean = 0.0
        self._num_averaged = 0
        self._num_left = self._settings.window  # verdicts until the next decision
        self.is_drafting = True

    def verdict(self, num_accepted: int) -> bool:
        """Takes in how many of the draft model's tokens a verdict accepted; returns whether a rest begins."""
        if self.is_drafting:
            self._num_averaged += 1
            self._mean += (num_accepted - self._mean) / min(self._num_averaged, self._settings.window)
        self._num_left -= 1
        if self._num_left > 0:
            return False
        if not self.is_drafting:
            self.is_drafting, self._mean, self._num_averaged = True, 0.0, 0
            self._num_left = self._settings.trial
        elif self._mean < self._settings.min_accepted:
            self.is_drafting = False
            self._num_left = self._settings.rest
        else:
            self._num_left = self._settings.window
        return not self.is_drafting
