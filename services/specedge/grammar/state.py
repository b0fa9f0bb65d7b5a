"""One session's place in its grammar."""

import time
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from specedge.grammar.matcher import Matcher

IntArray = NDArray[np.int64]
MaskArray = NDArray[np.int32]

EVERY_TOKEN: Final = -1  # a word with all bits set
MAX_TREE_S: Final = 0.5
MAX_MEAN_ROW_S: Final = 0.01
NUM_ROWS_MEASURED: Final = 100


class GrammarState:
    """What may follow the committed tokens of one session; for one thread at a time.

    Where the grammar may end, the end tokens are allowed; after one of them the state `is_ended`. Masks are packed: bit
    ``id % 32`` of word ``id // 32`` says whether the id is allowed.

    Args:
        matcher: where to begin, for this state alone; it ends the answer only where the grammar may end.
        vocab_size: the width of the target's logits.
    """

    def __init__(self, matcher: Matcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._num_words = -(-vocab_size // 32)
        self._vocab_size = vocab_size
        self._row = np.zeros((1, self._num_words), dtype=np.int32)  # what may follow the committed tokens
        self._has_row = False
        self._spent_s = 0.0
        self._num_rows = 0
        self._is_too_slow = False

    @property
    def is_ended(self) -> bool:
        """Whether an end token was accepted; nothing may follow."""
        return bool(self._matcher.is_terminated())

    @property
    def is_complete(self) -> bool:
        """Whether the text so far follows the grammar to an end; more may follow."""
        return bool(self._matcher.is_completed())

    @property
    def is_stuck(self) -> bool:
        """Whether no token at all may follow, although the answer has not ended: it must end here."""
        return not self.is_ended and not self._root().any()

    @property
    def is_too_slow(self) -> bool:
        """Whether its masks took so long that the session must end: others wait for them."""
        return self._is_too_slow

    def accept(self, token_ids: Sequence[int]) -> int:
        """Go on by committed tokens; how many of them the grammar took: fewer than given only where it was stuck."""
        for index, token_id in enumerate(token_ids):
            if not self._advance(token_id):
                return index
            self._has_row = False
        return len(token_ids)

    def masks(self, parents: Sequence[int] | IntArray, token_ids: Sequence[int] | IntArray) -> MaskArray:
        """What may follow the root and each node of a tree, along each node's own path; the state stays as it is.

        Args:
            parents: for each node the row of its parent: 0 is the root (the committed tokens), 1 + i is node i. Parents
                come before their children.
            token_ids: for each node.

        Returns:
            int32 [1 + num_nodes, num_words]. Rows that cannot be reached, below a refused or an end token, allow every
            token. When `is_too_slow` afterwards, rows may be missing in the same way, and none may be used.
        """
        masks = np.full((1 + len(token_ids), self._num_words), EVERY_TOKEN, dtype=np.int32)
        masks[0] = self._root()[0]
        if not len(token_ids):
            return masks
        tokens = np.asarray(token_ids, dtype=np.int64).tolist()
        children: list[list[int]] = [[] for _ in range(len(masks))]
        for row, parent in enumerate(np.asarray(parents, dtype=np.int64).tolist(), start=1):
            children[parent].append(row)
        matcher, depth, started = self._matcher, 0, time.thread_time()
        waiting = [(row, 0, 0) for row in reversed(children[0])]
        while waiting:
            row, parent, parent_depth = waiting.pop()
            token_id = tokens[row - 1]
            if not self._is_allowed(masks[parent], token_id):
                continue
            if depth > parent_depth:
                matcher.rollback(depth - parent_depth)
                depth = parent_depth
            if not matcher.accept_token(token_id):
                continue
            depth += 1
            if matcher.is_terminated():
                continue
            matcher.fill_next_token_bitmask(masks, row)
            waiting += [(child, row, depth) for child in reversed(children[row])]
            if time.thread_time() - started > MAX_TREE_S:
                self._is_too_slow = True
                break
        if depth:
            matcher.rollback(depth)
        self._measure(time.thread_time() - started, len(token_ids))
        return masks

    def allows(self, path: Sequence[int], token_ids: Sequence[int] | IntArray) -> NDArray[np.bool_]:
        """Which of these tokens may follow the committed tokens and a path of further ones; the state stays as it is.

        Returns:
            bool [len(token_ids)]; all False when the grammar refuses the path or ends in it.
        """
        row = self.row_after(path)
        ids = np.asarray(token_ids, dtype=np.int64)
        is_inside = (ids >= 0) & (ids < self._vocab_size)
        ids = np.where(is_inside, ids, 0)
        allowed: NDArray[np.bool_] = is_inside & ((row[ids >> 5] >> (ids & 31)) & 1).astype(np.bool_)
        return allowed

    def row_after(self, path: Sequence[int]) -> MaskArray:
        """What may follow the committed tokens and a path of further ones, int32 [num_words]; the state stays as it is.

        Returns:
            No token at all when the grammar refuses the path or ends in it.
        """
        if not path:
            root: MaskArray = self._root()[0].copy()
            return root
        rows, depth, started = np.zeros_like(self._row), 0, time.thread_time()
        while depth < len(path) and self._advance(path[depth]):
            depth += 1
        if depth == len(path) and not self.is_ended:
            self._matcher.fill_next_token_bitmask(rows)
        if depth:
            self._matcher.rollback(depth)
        self._measure(time.thread_time() - started, depth + 1)
        row: MaskArray = rows[0]
        return row

    def num_admitted(self, path: Sequence[int], token_ids: Sequence[int]) -> int:
        """How many of these tokens may follow, one after the other, the committed tokens and a path of further ones.

        The state stays as it is. An end token may be the last one.
        """
        depth, started = 0, time.thread_time()
        for token_id in (*path, *token_ids):
            if not self._advance(token_id):
                break
            depth += 1
        if depth:
            self._matcher.rollback(depth)
        self._measure(time.thread_time() - started, depth + 1)
        return max(0, depth - len(path))

    def fork(self) -> "GrammarState":
        """A second state at the same place, to be moved on by itself."""
        return GrammarState(self._matcher.fork(), self._vocab_size)

    def _root(self) -> MaskArray:
        """What may follow the committed tokens: int32 [1, num_words]; nothing after the end."""
        if not self._has_row:
            self._row.fill(0)
            if not self.is_ended:
                started = time.thread_time()
                self._matcher.fill_next_token_bitmask(self._row)
                self._measure(time.thread_time() - started, 1)
            self._has_row = True
        return self._row

    def _advance(self, token_id: int) -> bool:
        """Accept one token, if the grammar takes it."""
        is_inside = 0 <= token_id < self._vocab_size
        return is_inside and not self.is_ended and bool(self._matcher.accept_token(token_id))

    def _is_allowed(self, row: MaskArray, token_id: int) -> bool:
        return 0 <= token_id < self._vocab_size and bool((int(row[token_id >> 5]) >> (token_id & 31)) & 1)

    def _measure(self, seconds: float, num_rows: int) -> None:
        self._spent_s += seconds
        self._num_rows += num_rows
        if self._num_rows >= NUM_ROWS_MEASURED and self._spent_s > self._num_rows * MAX_MEAN_ROW_S:
            self._is_too_slow = True
