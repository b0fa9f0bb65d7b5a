"""The log of paced forwards: which of them the computation itself made late."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

LATE_S = 0.001  # a forward that ends later than its pace by less than this is in time
OnForward = Callable[["Forward"], None]


@dataclass(frozen=True, slots=True)
class Forward:
    """One paced forward; times in seconds.

    Attributes:
        started_s: by the wall clock.
        num_rows, num_sessions: of its batch.
        computed_s: what the computation took.
        paced_s: what the curve says it takes.
        lasted_s: until its result was handed back.
        model: "target" or "draft".
    """

    started_s: float
    num_rows: int
    num_sessions: int
    computed_s: float
    paced_s: float
    lasted_s: float
    model: str = ""

    @property
    def is_late(self) -> bool:
        return self.computed_s > self.paced_s + LATE_S


class ForwardLog:
    """Appends a model's forwards to a file that other processes append to as well, line by line."""

    def __init__(self, path: Path, model: str) -> None:
        self._path = path
        self._model = model

    def __call__(self, forward: Forward) -> None:
        """Writes a finished forward."""
        row = asdict(forward) | {"model": self._model}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, separators=(",", ":")) + "\n")


def read_forwards(path: Path, offset: int = 0) -> list[Forward]:
    """The forwards behind an offset in bytes, in the order in which they ended; a line that is cut off is left out."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(offset)
        lines = file.read().decode().split("\n")[:-1]
    return [Forward(**json.loads(line)) for line in lines]
