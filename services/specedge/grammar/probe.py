"""Walks a compiled grammar before it is served, to find masks that take too long.

A grammar that compiles at once can still take seconds for one mask: an ambiguous one, such as ``((a*)*)*``, is followed
along every reading of the text so far. The engine's thread would wait.
"""

import time
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from specedge.grammar.matcher import Matcher

NUM_STEPS: Final = 48
MAX_ROW_S: Final = 0.1
MAX_MEAN_ROW_S: Final = 0.005


def is_slow(begin: Callable[[], Matcher], vocab_size: int) -> bool:
    """Whether a mask took longer than MAX_ROW_S, or more than MAX_MEAN_ROW_S on average, on any of three walks.

    Time is that of the processor, so that a busy machine changes nothing.
    """
    mask = np.zeros((1, -(-vocab_size // 32)), dtype=np.int32)
    return any(_walk_is_slow(begin(), mask, walk) for walk in range(3))


def _walk_is_slow(matcher: Matcher, mask: NDArray[np.int32], walk: int) -> bool:
    """One walk: the same token again and again where it is allowed (0), or drawn tokens (1, 2)."""
    rng = np.random.default_rng(walk)
    spent, last = 0.0, -1
    for _ in range(NUM_STEPS):
        started = time.thread_time()
        matcher.fill_next_token_bitmask(mask)
        spent += (row := time.thread_time() - started)
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        if row > MAX_ROW_S:
            return True
        if not len(allowed):
            break
        if walk > 0 or last not in allowed:
            last = int(allowed[rng.integers(len(allowed))])
        started = time.thread_time()
        is_accepted = matcher.accept_token(last)
        spent += (row := time.thread_time() - started)
        if row > MAX_ROW_S or spent > NUM_STEPS * MAX_MEAN_ROW_S:
            return True
        if not is_accepted or matcher.is_terminated():
            break
    return False
