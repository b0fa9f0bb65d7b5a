"""Draft sources that no model stands behind: trees at random, partly right, and trees that are always wrong.

Both know the right answers, from plain decoding. They name themselves anew for every answer, so that the verifier never
learns how little their scores mean and goes on verifying what they send.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from random import Random

from edge_agent.draft_source import OnNodes
from specedge.drafting.draft_session import DraftRequest
from specedge.trie import anchor_at
from specedge.wire.messages import DraftNodes

Grow = Callable[["ScriptedSession"], DraftNodes]

_DELAYS_S = (0.0, 0.0, 0.001, 0.004, 0.015)
_MAX_MESSAGES = 4  # between two verdicts
_MAX_CHAINS = 4  # of a random message
_MAX_CHAIN_NODES = 12
_WRONG_DEPTH = 5
_WRONG_WIDTH = 3


class ScriptedDrafts:
    """A DraftSource whose messages come from `grow`.

    Args:
        name: begins the drafter's ids.
        grow: makes a session's next message.
        answers: the right answer by session id.
        vocab_size: tokens to draw from.
        seed: two sources with one seed make the same choices.
    """

    def __init__(self, name: str, grow: Grow, answers: Mapping[str, Sequence[int]], vocab_size: int, seed: int) -> None:
        self._name = name
        self._grow = grow
        self._answers = answers
        self._vocab_size = vocab_size
        self._seed = seed
        self._num_opened = count()

    @property
    def drafter_id(self) -> str:
        """Another one for every answer."""
        return f"{self._name}-{next(self._num_opened)}"

    def open(self, request: DraftRequest, on_nodes: OnNodes) -> "ScriptedSession":
        """Starts drafting; sessions without a known answer draft from its first token on at random."""
        text = [*request.committed, *self._answers.get(request.session_id, ())]
        draw = Random(f"{self._seed} {request.session_id}")
        return ScriptedSession(self._grow, text, len(request.committed), self._vocab_size, draw, on_nodes)


class ScriptedSession:
    """One answer's drafting: a few messages after every verdict, some of them late.

    Attributes:
        text: prompt and right answer.
        num_committed: tokens of it that are committed, as far as is known here.
        parents, tokens: by node number, in this epoch.
        positions: by node number, the position each node's token is for.
        is_right: by node number, whether the path down to it is the text's.
    """

    def __init__(
        self, grow: Grow, text: list[int], num_committed: int, vocab_size: int, draw: Random, on_nodes: OnNodes
    ) -> None:
        self.text = text
        self.num_committed = num_committed
        self.draw = draw
        self._grow = grow
        self._vocab_size = vocab_size
        self._on_nodes = on_nodes
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._num_messages_left = 0
        self._is_paused = False
        self._is_closed = False
        self._epoch = 0
        self._forget()
        self._go_on()

    def verdict(self, token_ids: Sequence[int]) -> None:
        self.num_committed += len(token_ids)
        self._go_on()

    def restart(self) -> int:
        self._epoch += 1
        self._forget()
        self._go_on()
        return self._epoch

    def pause(self) -> None:
        self._is_paused = True

    def resume(self) -> None:
        self._is_paused = False
        self._go_on()

    def close(self) -> None:
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()

    def add(self, parent: int, token: int) -> int:
        """Takes a node into the message being made and returns its number."""
        position = self.position_below(parent)
        follows_text = parent < 0 or self.is_right[parent]
        self.parents.append(parent)
        self.tokens.append(token)
        self.positions.append(position)
        self.is_right.append(follows_text and token == self.right_token(position))
        return len(self.tokens) - 1

    def position_below(self, parent: int) -> int:
        """The position a child of this node or anchor is for."""
        return (~parent if parent < 0 else self.positions[parent]) + 1

    def right_token(self, position: int) -> int | None:
        """The text's token at a position; None beyond its end."""
        return self.text[position] if position < len(self.text) else None

    def any_token(self, but: int | None = None) -> int:
        """A token at random, other than `but`."""
        while (token := self.draw.randrange(self._vocab_size)) == but:
            pass
        return token

    def _go_on(self) -> None:
        self._num_messages_left = self.draw.randint(0 if self.num_committed % 5 == 0 else 1, _MAX_MESSAGES)
        self._schedule()

    def _schedule(self) -> None:
        if self._timer is None and self._num_messages_left and not (self._is_paused or self._is_closed):
            self._timer = self._loop.call_later(self.draw.choice(_DELAYS_S), self._send)

    def _send(self) -> None:
        self._timer = None
        if self._is_paused or self._is_closed:
            return
        self._num_messages_left -= 1
        self._on_nodes(self._epoch, self._grow(self))
        self._schedule()

    def _forget(self) -> None:
        self.parents: list[int] = []
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.is_right: list[bool] = []


def grow_at_random(session: ScriptedSession) -> DraftNodes:
    """Chains, branches, anchors in the past, children of the dead, repeated nodes, and ends beyond the answer's."""
    draw, first = session.draw, len(session.tokens)
    frontier = session.num_committed - 1
    for _ in range(draw.randint(1, _MAX_CHAINS)):
        kind, num_nodes = draw.random(), len(session.tokens)
        if kind < 0.15 and num_nodes:  # a node that has come before, perhaps long ago
            again = draw.randrange(num_nodes)
            session.add(session.parents[again], session.tokens[again])
            continue
        if kind < 0.35 and num_nodes:  # below any node, alive or not
            parent = draw.randrange(num_nodes)
        elif kind < 0.5:  # in the past, where only what was committed is not dead
            parent = anchor_at(draw.randint(max(0, frontier - 10), frontier))
        else:
            parent = anchor_at(frontier)
        for _ in range(draw.randint(1, _MAX_CHAIN_NODES)):
            right = session.right_token(session.position_below(parent))
            parent = session.add(parent, right if right is not None and draw.random() < 0.9 else session.any_token())
    return _message(session, first, lambda: -draw.expovariate(6.0))


def grow_wrong(session: ScriptedSession) -> DraftNodes:
    """Trees whose first tokens are never right, and who claim to be certain; below, the right text goes on."""
    first = len(session.tokens)
    root = session.num_committed
    for _ in range(_WRONG_WIDTH):
        node = session.add(anchor_at(root - 1), session.any_token(but=session.right_token(root)))
        for position in range(root + 1, root + _WRONG_DEPTH):
            right = session.right_token(position)
            node = session.add(node, session.any_token() if right is None else right)
    return _message(session, first, lambda: 0.0)


def _message(session: ScriptedSession, first: int, score: Callable[[], float]) -> DraftNodes:
    return DraftNodes(
        token_ids=session.tokens[first:],
        parents=session.parents[first:],
        scores=[score() for _ in session.tokens[first:]],
    )
