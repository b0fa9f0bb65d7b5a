"""Which forwards are timed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from specedge.errors import SettingsError

Kind = Literal["tree", "sessions", "chunk"]
KINDS: dict[Kind, str] = {
    "tree": "one session's tree",
    "sessions": "8 sessions, a tree each",
    "chunk": "a chunk of one prompt",
}
NUM_SESSIONS = 8
MAX_ROWS = 4096


class BadGrid(SettingsError):
    """A grid asks for what cannot be measured; names the value and the limit."""


@dataclass(frozen=True, slots=True)
class Point:
    """One forward: `num_nodes` rows of each session after `prefix` tokens of each."""

    kind: Kind
    num_sessions: int
    num_nodes: int
    prefix: int

    @property
    def num_rows(self) -> int:
        return self.num_sessions * self.num_nodes

    @property
    def num_wanted(self) -> int:
        """Rows whose logits are wanted: every node of a tree, the last token of a chunk."""
        return self.num_sessions if self.kind == "chunk" else self.num_rows

    @property
    def num_context(self) -> int:
        """Tokens whose keys and values are read, each once."""
        return self.num_sessions * (self.prefix + self.num_nodes)

    @property
    def num_pairs(self) -> float:
        """Pairs of a row and a token it sees; of a tree's nodes each sees its own depth only, which is next to none."""
        own = (self.num_nodes + 1) / 2 if self.kind == "chunk" else 1.0
        return self.num_rows * (self.prefix + own)


def grid(kinds: Sequence[Kind], rows: Sequence[int], prefixes: Sequence[int], max_positions: int) -> list[Point]:
    """Every combination that is a forward of its own.

    Prefixes beyond the model's positions are replaced by the longest one that leaves room for the rows of a chunk.

    Raises:
        BadGrid: no combination fits, or a number of rows is beyond the limit.
    """
    if max(rows) > MAX_ROWS:
        raise BadGrid(f"rows {max(rows)}: at most {MAX_ROWS} are measured")
    longest = max_positions - max(rows)
    if longest < 1:
        raise BadGrid(f"rows {max(rows)}: the model has {max_positions} positions, a prefix included")
    fitting = sorted({min(prefix, longest) for prefix in prefixes})
    points = [
        point
        for kind in kinds
        for num_rows in sorted(set(rows))
        for prefix in fitting
        if (point := _point(kind, num_rows, prefix)) is not None
    ]
    if not points:
        raise BadGrid(f"rows {', '.join(map(str, rows))}: {' and '.join(kinds)} need {_LEAST_ROWS[kinds[0]]} or more")
    return points


_LEAST_ROWS: dict[Kind, int] = {"tree": 1, "sessions": NUM_SESSIONS, "chunk": 2}


def _point(kind: Kind, num_rows: int, prefix: int) -> Point | None:
    """None where there is no such forward, or another kind has it."""
    if num_rows < _LEAST_ROWS[kind]:
        return None
    if kind != "sessions":
        return Point(kind, 1, num_rows, prefix)
    return Point(kind, NUM_SESSIONS, num_rows // NUM_SESSIONS, prefix) if num_rows % NUM_SESSIONS == 0 else None
