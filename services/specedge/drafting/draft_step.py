"""One draft step: which sessions get how many rows, and the packed batch of all of them.

A forward of the draft model costs nearly the same for one row as for a hundred, so rows go to the most probable
nodes of all sessions together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specedge.drafting.draft_session import Demand, SessionDrafting
from specedge.drafting.draft_tree import DraftTree, Rows
from specedge.drafting.grammar_masks import allowed_children
from specedge.model.batch import PackedBatch
from specedge.row_group import RowGroup


@dataclass(frozen=True, slots=True)
class Share:
    """What a session gets in a step: rows for committed tokens, or nodes to expand."""

    session: SessionDrafting
    tree: DraftTree
    num_committed: int
    nodes: list[int]

    @property
    def num_rows(self) -> int:
        return self.num_committed + len(self.nodes)

    def take_rows(self) -> Rows:
        """Takes slots for the rows and returns them."""
        return self.tree.expand(self.nodes) if self.nodes else self.tree.catch_up(self.num_committed)


def share_rows(
    demands: Sequence[tuple[SessionDrafting, Demand]], *, max_expansion_rows: int, max_catch_up_rows: int
) -> list[Share]:
    """Divides a step's rows: the best nodes of all sessions, and committed tokens of those with the fewest first."""
    shares = []
    num_left = max_catch_up_rows
    for session, demand in sorted(demands, key=lambda pair: pair[1].num_uncomputed):
        num_rows = min(demand.num_uncomputed, num_left)
        if num_rows:
            shares.append(Share(session, demand.tree, num_rows, []))
            num_left -= num_rows
    offers = [
        (score, -index, -rank, number)
        for index, (_, demand) in enumerate(demands)
        for rank, (score, number) in enumerate(demand.nodes)
    ]
    chosen: dict[int, list[int]] = {}
    for _, index, _, number in sorted(offers, reverse=True)[:max_expansion_rows]:
        chosen.setdefault(-index, []).append(number)
    for index, nodes in chosen.items():
        session, demand = demands[index]
        shares.append(Share(session, demand.tree, 0, nodes))
    return shares


@dataclass(frozen=True, slots=True)
class DraftStep:
    """The rows of a step, session by session."""

    parts: list[tuple[SessionDrafting, DraftTree, Rows]]

    @property
    def num_rows(self) -> int:
        return sum(rows.num_rows for _, _, rows in self.parts)

    def batch(self) -> PackedBatch:
        """All rows in one batch."""
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        wanted: list[int] = []
        for _, _, rows in self.parts:
            wanted += [len(token_ids) + row for row in rows.wanted]
            token_ids += rows.token_ids
            positions += rows.positions
            slots += rows.slots
        return PackedBatch(
            token_ids=np.array(token_ids, dtype=np.int64),
            positions=np.array(positions, dtype=np.int64),
            slots=np.array(slots, dtype=np.int64),
            segments=tuple(rows.segment() for _, _, rows in self.parts),
            logits_rows=np.array(wanted, dtype=np.int64),
        )

    def groups(self) -> list[RowGroup]:
        """The wanted rows' sampling, in the order of their logits."""
        return [_group(session, tree, rows) for session, tree, rows in self.parts if rows.wanted]


def _group(session: SessionDrafting, tree: DraftTree, rows: Rows) -> RowGroup:
    request = session.request
    positions = np.array([rows.positions[row] + 1 for row in rows.wanted], dtype=np.int64)
    return RowGroup(
        params=request.sampling,
        positions=positions,
        eos_ids=request.eos_ids,
        prompt_len=session.prompt_len,
        counts=session.counts,
        paths=session.paths(tree, rows.references) if request.sampling.needs_paths else None,
        committed=session.committed,
        allowed=None if session.grammar is None else allowed_children(session, tree, rows.references, positions),
    )
