"""What follows one text through a grammar, whichever library compiled it."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Matcher(Protocol):
    """A place in a grammar; as ``xgrammar.GrammarMatcher``, for one thread at a time."""

    def accept_token(self, token_id: int, /) -> bool:
        """Go on by one token, or stay and return False where the grammar does not have it."""

    def rollback(self, num_tokens: int, /) -> None:
        """Take the last tokens back, an end token among them."""

    def fill_next_token_bitmask(self, masks: NDArray[np.int32], row: int = 0, /) -> object:
        """Write what may come next into one row: bit ``id % 32`` of word ``id // 32``."""

    def is_terminated(self) -> bool:
        """Whether an end token was accepted."""

    def is_completed(self) -> bool:
        """Whether the text so far follows the grammar to an end."""

    def fork(self) -> "Matcher":
        """A second one at the same place."""


BeginMatcher = Callable[[Sequence[int]], Matcher]
"""A matcher before the first token; the ids end the answer where the grammar may end."""
