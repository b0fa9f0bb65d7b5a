"""What a pace is, and the command of a service that keeps it."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specedge.errors import SettingsError
from specedge_bench.curves import load_curve

NO_LOG = "-"


@dataclass(frozen=True, slots=True)
class Pace:
    """What the forwards of the services are.

    Attributes:
        target, draft: names of the curves they are stretched to, see `specedge_bench.curves.load_curve`.
        pair: "embedded" computes them; "modelled" makes tokens by arithmetic, at a known acceptance.
        log: file that takes every forward.
    """

    target: str
    draft: str
    pair: str = "embedded"
    log: Path | None = None

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The command line of a verifier or edge process that ends when this process does."""
        log = NO_LOG if self.log is None else str(self.log)
        own = [str(os.getpid()), self.pair, self.target, self.draft, log]
        return [sys.executable, "-m", "specedge_bench.pace.process", *own, *arguments]


def parse_pace(text: str, pair: str = "embedded") -> Pace:
    """The pace of a flag's value TARGET,DRAFT; raises SettingsError for another form, and for curves there are not."""
    names = [name.strip() for name in text.split(",")]
    if len(names) != 2:
        raise SettingsError(f"--pace {text!r}; it must be TARGET,DRAFT with the names of two curves, as 30ms,5ms")
    for name in names:
        load_curve(name)
    return Pace(names[0], names[1], pair)
