"""Where an answer ends: by token (end-of-sequence, stop ids, token limits) and by text (stop strings).

Both give the same end however the answer arrives, token by token or in bursts of accepted drafts.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

from specedge.sampling import SamplingParams

FinishReason = Literal["stop", "length"]


class TokenStops:
    """Finds the end of one answer inside the tokens a verification accepted."""

    def __init__(self, eos_ids: Iterable[int], params: SamplingParams) -> None:
        stop_ids = frozenset(params.stop_token_ids)
        self._stop_ids = stop_ids if params.ignore_eos else stop_ids.union(eos_ids)
        self._min_tokens = params.min_tokens
        self._max_tokens = params.max_tokens

    def truncate(self, tokens: Sequence[int], num_generated: int) -> tuple[list[int], FinishReason | None]:
        """The tokens that belong to the answer, and why it ends with them, or None when it goes on.

        The answer ends with its first stop token, which is kept as the last one ("stop"), or when it has max_tokens
        tokens ("length"); a stop token in the last place counts as "stop". The first min_tokens tokens never stop it.

        Args:
            tokens: accepted tokens, in order.
            num_generated: tokens of the answer before them.
        """
        if num_generated + len(tokens) < self._max_tokens and self._stop_ids.isdisjoint(tokens):
            return list(tokens), None
        for index, token_id in enumerate(tokens):
            num_before = num_generated + index
            if num_before >= self._max_tokens:
                return list(tokens[:index]), "length"
            if token_id in self._stop_ids and num_before >= self._min_tokens:
                return list(tokens[: index + 1]), "stop"
        return list(tokens), "length" if num_generated + len(tokens) >= self._max_tokens else None


class TextStopper:
    """Ends a streamed text before the first stop string, without ever releasing a part of one.

    The first stop string is the one that is complete first, and the longest of those complete at the same character:
    the only rule that gives the same text however it is cut into pieces, and needs no text from after the end.

    Args:
        stops: the stop strings, none of them empty.
        keeps_stop: the text ends with the stop string instead of before it.

    Attributes:
        hit: the stop string that ended the text; None before.
    """

    def __init__(self, stops: Sequence[str], *, keeps_stop: bool = False) -> None:
        assert all(stops), "stop strings are not empty"
        self._stops = tuple(stops)
        self.hit: str | None = None
        self._keeps_stop = keeps_stop
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """The text that may be released now, and whether a stop string was hit; nothing may be fed after a hit."""
        text = self._held + text
        matches = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if matches:
            self._held = ""
            end, start = min(matches)
            self.hit = text[start:end]
            return text[: end if self._keeps_stop else start], True
        num_released = len(text) - self._num_held(text)
        self._held = text[num_released:]
        return text[:num_released], False

    def flush(self) -> str:
        """The text held back, when the answer ended without a stop string."""
        held, self._held = self._held, ""
        return held

    def _num_held(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
