"""The grid: one cell per temperature, kind of requests, drafter, number of sessions, KV pool and network.

With mixed requests every combination is a cell. Requests that all have penalties, or all grammars, are for the rules of
sampling under drafts: they have every drafter and temperature, at two corners of the rest.
"""

from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

from benchmarks.exactness.parameters import Requests

Drafter = Literal["none", "demo", "lookup", "both", "server", "random", "wrong"]
Pool = Literal["roomy", "tight"]
Network = Literal["steady", "cut"]

TEMPERATURES = (0.0, 0.7, 1.0)
NUM_SESSIONS = (1, 8)
CORNERS = {(1, "roomy", "steady"), (8, "tight", "cut")}


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination.

    Attributes:
        temperature: of every request.
        requests: what their parameters have in common, see `parameters`.
        drafter: none, demo (the embedded draft model), lookup (no model), both, server (both, beside the target: system
            server-only), random (random trees, partly right), or wrong (always).
        num_sessions: answers made at a time.
        pool: tight has so few KV blocks that sessions are preempted.
        network: cut breaks streams in the middle of answers.
    """

    temperature: float
    requests: Requests
    drafter: Drafter
    num_sessions: int
    pool: Pool
    network: Network

    @property
    def words(self) -> tuple[str, ...]:
        """What the cell is called; no two properties share a word."""
        return f"T{self.temperature:g}", self.requests, self.drafter, f"x{self.num_sessions}", self.pool, self.network

    @property
    def looks_up(self) -> bool:
        """Whether an edge looks up, and can make use of a prediction."""
        return self.drafter in ("lookup", "both")

    @property
    def is_in_grid(self) -> bool:
        """Whether the combination is worth its time."""
        if self.requests == "mixed":
            return True
        return self.drafter != "none" and (self.num_sessions, self.pool, self.network) in CORNERS

    @property
    def name(self) -> str:
        return " ".join(self.words)

    def matches(self, chosen: str) -> bool:
        """Whether the cell has all the words; of several alternatives joined by a comma it needs one."""
        return all(set(word.split(",")) & set(self.words) for word in chosen.split())


def grid(chosen: str = "") -> list[Cell]:
    """Every cell that matches; raises ValueError for words that no cell has."""
    properties = (TEMPERATURES, get_args(Requests), get_args(Drafter), NUM_SESSIONS, get_args(Pool), get_args(Network))
    cells = [cell for values in product(*properties) if (cell := Cell(*values)).is_in_grid]
    words = {word for cell in cells for word in cell.words}
    if unknown := set(chosen.replace(",", " ").split()) - words:
        raise ValueError(f"no cell is called {', '.join(sorted(unknown))}; the words are {', '.join(sorted(words))}")
    return [cell for cell in cells if cell.matches(chosen)]
