"""How fast sessions are served, measured over the steps."""

from dataclasses import dataclass

_WEIGHT = 0.05  # of a new step in the moving averages


@dataclass(slots=True)
class ServiceRate:
    """Moving averages over steps.

    Attributes:
        tokens_per_root: tokens that a session gets in a step in which it gets any.
        step_s: from one step's end to the next one's, while there is work.
        ended_s: when the last step ended.
    """

    tokens_per_root: float = 1.0
    step_s: float = 0.0
    ended_s: float | None = None

    def observe(self, num_roots: int, num_committed: int, step_s: float, ended_s: float) -> None:
        """Learn from a finished step.

        Args:
            num_roots: sessions that got tokens.
            num_committed: tokens they got.
            step_s: how long it took by itself.
            ended_s: by the engine's clock.
        """
        idle_s = 0.0 if self.ended_s is None else max(0.0, ended_s - self.ended_s - step_s)
        self.ended_s = ended_s
        interval_s = step_s if idle_s > step_s else step_s + idle_s  # after a longer one there was nothing to do
        self.step_s += (_WEIGHT if self.step_s else 1.0) * (interval_s - self.step_s)
        if num_roots:
            self.tokens_per_root += _WEIGHT * (num_committed / num_roots - self.tokens_per_root)
