"""The grid: one cell per temperature, drafter, number of sessions, size of the KV pool and state of the network."""

from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

Drafter = Literal["none", "demo", "lookup", "both", "random", "wrong"]
Pool = Literal["roomy", "tight"]
Network = Literal["steady", "cut"]

TEMPERATURES = (0.0, 0.7, 1.0)
NUM_SESSIONS = (1, 8)


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination.

    Attributes:
        temperature: of every request.
        drafter: none, demo (the embedded draft model), lookup (no model), both, random (random trees, partly right), or
            wrong (always).
        num_sessions: answers made at a time.
        pool: tight has so few KV blocks that sessions are preempted.
        network: cut breaks streams in the middle of answers.
    """

    temperature: float
    drafter: Drafter
    num_sessions: int
    pool: Pool
    network: Network

    @property
    def words(self) -> tuple[str, ...]:
        """What the cell is called; no two properties share a word."""
        return f"T{self.temperature:g}", self.drafter, f"x{self.num_sessions}", self.pool, self.network

    @property
    def name(self) -> str:
        return " ".join(self.words)

    def matches(self, chosen: str) -> bool:
        """Whether the cell has all the words; of several alternatives joined by a comma it needs one."""
        return all(set(word.split(",")) & set(self.words) for word in chosen.split())


def grid(chosen: str = "") -> list[Cell]:
    """Every cell that matches; raises ValueError for words that no cell has."""
    cells = [
        Cell(*values)
        for values in product(TEMPERATURES, get_args(Drafter), NUM_SESSIONS, get_args(Pool), get_args(Network))
    ]
    words = {word for cell in cells for word in cell.words}
    if unknown := set(chosen.replace(",", " ").split()) - words:
        raise ValueError(f"no cell is called {', '.join(sorted(unknown))}; the words are {', '.join(sorted(words))}")
    return [cell for cell in cells if cell.matches(chosen)]
