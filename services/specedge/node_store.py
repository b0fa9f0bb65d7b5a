"""Live draft nodes of any number of tries as columns, so that a step can look at all of them at once.

Every column exists twice over the same memory: as an array that is quick to read and write node by node, and as a view
for many nodes together. A node keeps its place while it lives; places of the dead are handed out again.
"""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_FIRST_CAPACITY = 64


class NodeStore:
    """Places for nodes, and what is known about the node at each.

    Attributes:
        number, parent, token, position, loss: per place; the parent is a place, the root's entry is not read. The loss
            is the negative score in a frame that commits do not move.
        numbers, parents, tokens, positions, losses: the same memory, [capacity]; views that `reserve` replaces.
    """

    def __init__(self) -> None:
        self.number, self.parent, self.token, self.position = (array("q") for _ in range(4))
        self.loss = array("d")
        self._free: list[int] = []
        self._grow(_FIRST_CAPACITY)

    @property
    def capacity(self) -> int:
        return len(self.loss)

    @property
    def num_taken(self) -> int:
        """Places in use."""
        return self.capacity - len(self._free)

    def reserve(self, num_places: int) -> list[int]:
        """The free places, at least `num_places` of them; whoever takes one pops it."""
        if len(self._free) < num_places:
            self._grow(max(2 * self.capacity, self.num_taken + num_places))
        return self._free

    def release(self, places: Iterable[int]) -> None:
        """Give back the places of nodes that no trie holds any more."""
        self._free.extend(places)

    def rank(self, groups: Sequence["array[int]"], limit: int) -> tuple[IntArray, IntArray]:
        """The best nodes of each group, best first; on ties the one that comes first in its group.

        Args:
            groups: places; usually those of a trie's live nodes, in order of number.
            limit: nodes kept of each group.

        Returns:
            Their places, group after group, and how many there are of each.
        """
        if len(groups) == 1:
            places = np.array(groups[0], dtype=np.int64)
            places = places.take(self.losses.take(places).argsort(kind="stable")[:limit])
            return places, np.array([len(places)])
        lengths = [len(group) for group in groups]
        sizes = np.array(lengths)
        places = np.frombuffer(b"".join(groups), dtype=np.int64)
        is_node = np.arange(max(lengths)) < sizes[:, None]
        losses = np.full(is_node.shape, np.inf)
        losses[is_node] = self.losses.take(places)
        order = losses.argsort(axis=1, kind="stable")
        order += (sizes.cumsum() - sizes)[:, None]
        return places.take(order[:, :limit][is_node[:, :limit]]), np.minimum(sizes, limit)

    def _grow(self, capacity: int) -> None:
        added = capacity - self.capacity
        self._free.extend(range(capacity - 1, self.capacity - 1, -1))
        blank = bytes(8 * added)  # new columns, since a column with views cannot change its length
        self.number, self.parent, self.token, self.position = (
            array("q", column.tobytes() + blank) for column in (self.number, self.parent, self.token, self.position)
        )
        self.loss = array("d", self.loss.tobytes() + blank)
        self.numbers, self.parents, self.tokens, self.positions = (
            np.frombuffer(column, dtype=np.int64) for column in (self.number, self.parent, self.token, self.position)
        )
        self.losses: FloatArray = np.frombuffer(self.loss, dtype=np.float64)
