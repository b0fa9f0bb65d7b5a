"""Acceptance: the walk from the root along the target's own tokens.

Every committed token is the target's own sample after the text before it, so the walk is exact for any tree; the tree
only decides how many samples one step can use.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Walk:
    """The accepted path: its rows without the root's, and its tokens with the bonus token as the last one."""

    rows: list[int]
    tokens: list[int]


def walk(parents: Sequence[int], tokens: Sequence[int], sampled: Sequence[int]) -> Walk:
    """Follow the children that match what the target sampled, as far as they go.

    Args:
        parents: the row of each row's parent, always an earlier one; row 0 is the root and its entry is not read.
        tokens: each row's own token, without the root's; siblings differ.
        sampled: the target's token after each row.
    """
    rows: list[int] = []
    current = 0
    wanted = sampled[0]
    committed = [wanted]
    for row, token in enumerate(tokens, start=1):
        if token == wanted and parents[row] == current:
            current = row
            wanted = sampled[row]
            rows.append(row)
            committed.append(wanted)
    return Walk(rows, committed)
