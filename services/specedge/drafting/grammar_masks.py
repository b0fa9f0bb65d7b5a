"""What a session's grammar allows after the nodes of its draft tree."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from specedge.drafting.draft_session import SessionDrafting
from specedge.drafting.draft_tree import DraftTree
from specedge.grammar.hold_back import hold_back


def allowed_children(
    session: SessionDrafting, tree: DraftTree, references: Sequence[int], positions: NDArray[np.int64]
) -> NDArray[np.int32]:
    """As `RowGroup.allowed`, one row for each reference.

    Args:
        session: one with a grammar.
        tree: its own, or one that supposes more tokens to be committed.
        references: nodes, or the anchor of the tree's last committed token.
        positions: of the children.
    """
    assert session.grammar is not None
    trie = tree.trie
    token_ids = trie.committed[len(session.committed) :]
    parents = list(range(len(token_ids)))
    root, row_of = len(token_ids), dict[int, int]()
    wanted = []
    for reference in references:
        row = root
        for number in trie.path(reference) if reference >= 0 else ():
            if number not in row_of:
                parents.append(row)
                token_ids.append(trie.token(number))
                row_of[number] = len(token_ids)
            row = row_of[number]
        wanted.append(row)
    masks = session.grammar.masks(parents, token_ids)[wanted]
    sampling = session.request.sampling
    if sampling.min_tokens:
        is_early = positions - session.prompt_len < sampling.min_tokens
        hold_back(masks, is_early, (*session.request.eos_ids, *sampling.stop_token_ids))
    return masks
