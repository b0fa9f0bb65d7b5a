"""Which tokens an answer's content is made of, as against its thoughts and its tool calls."""

from typing import NamedTuple

from edge_agent.http.delta import Delta
from specedge.wire.messages import TokenLogprob


class ScoredToken(NamedTuple):
    """A token and its log-probability."""

    token_id: int
    logprob: TokenLogprob


class ContentTokens:
    """Sorts the tokens of one answer as they are parsed.

    A token whose text is still held back waits for what becomes of it; tags, thoughts, calls and what ends the answer
    are no content.
    """

    def __init__(self) -> None:
        self._held: list[ScoredToken] = []

    def feed(self, token: ScoredToken, delta: Delta, *, is_thought: bool) -> tuple[ScoredToken, ...]:
        """The tokens of the content that a token's text has added.

        Args:
            token: the next one.
            delta: what its text turned out to be.
            is_thought: it belongs to a thought.
        """
        self._held.append(token)
        if delta.content:
            return self.end(delta)
        if is_thought or delta.reasoning or delta.tool_calls:
            self._held = []
        return ()

    def end(self, delta: Delta) -> tuple[ScoredToken, ...]:
        """The tokens of content that was held back to the answer's end."""
        told, self._held = self._held if delta.content else [], []
        return tuple(told)
