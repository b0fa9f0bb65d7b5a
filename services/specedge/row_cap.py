"""How many rows a step may have: fewer after memory ran out in one, and more again while steps go well."""

_STEPS_PER_DOUBLING = 64


class RowCap:
    """The bound of one model's steps.

    Args:
        most: rows of a step while memory suffices.

    Attributes:
        rows: the bound now.
        num_shortages: steps given up for want of memory.
    """

    def __init__(self, most: int) -> None:
        self.rows = most
        self.num_shortages = 0
        self._most = most
        self._num_steps = 0  # that went well since the bound changed

    @property
    def is_short(self) -> bool:
        """Whether it is lower than it was."""
        return self.rows < self._most

    def shrink(self, num_rows: int, num_needed: int) -> bool:
        """Memory ran out in a step.

        Args:
            num_rows: its rows.
            num_needed: those among them that are no draft nodes; the others go first.

        Returns:
            Whether smaller steps are left; False: it had a single row.
        """
        self.num_shortages += 1
        self._num_steps = 0
        if num_needed < num_rows:
            self.rows = max(1, num_needed)
            return True
        self.rows = max(1, num_rows // 2)
        return num_rows > 1

    def stepped(self) -> None:
        """A step went well."""
        if self.is_short:
            self._num_steps += 1
            if self._num_steps >= _STEPS_PER_DOUBLING:
                self._num_steps = 0
                self.rows = min(2 * self.rows, self._most)
