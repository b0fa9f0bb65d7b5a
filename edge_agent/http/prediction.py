"""Predicted Outputs: what a client expects the answer to be, and how much of it the answer took over.

A prediction is drafted from and never changes a token. Both counts depend on prediction and answer alone.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

from edge_agent.http.errors import ContextLengthExceeded
from edge_agent.http.schema import shown
from specedge.drafting.lookup import prediction_follower
from specedge.drafting.ngram_index import MAX_MATCH
from specedge.errors import InvalidRequest


def prediction_text(value: Any) -> str:
    """The text of a `prediction`, its parts joined; "" where there is none.

    Raises:
        InvalidRequest: names the part and what is wrong with it.
    """
    if value is None:
        return ""
    if not isinstance(value, dict):
        raise _refusal("prediction", value, "an object with type and content")
    if value.get("type") != "content":
        raise _refusal("prediction.type", value.get("type"), "'content'")
    content = value.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _refusal("prediction.content", content, "a string or a list of text parts")
    return "".join(_part_text(part, f"prediction.content[{index}]") for index, part in enumerate(content))


def check_prediction_ids(token_ids: Sequence[int], max_len: int) -> None:
    """Raises ContextLengthExceeded for a prediction that no answer could hold."""
    if len(token_ids) > max_len:
        raise ContextLengthExceeded(
            f"this model's maximum context length is {max_len} tokens, but the prediction has {len(token_ids)}",
            param="prediction",
        )


def _part_text(part: Any, place: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise _refusal(place, part, 'a text part, {"type": "text", "text": ...}')
    return str(part["text"])


def _refusal(place: str, value: Any, expected: str) -> InvalidRequest:
    return InvalidRequest(f"{place} is {shown(value)}; it must be {expected}", param=place)


class PredictionCount:
    """Counts the tokens of a prediction that an answer took over: each place of it once.

    Args:
        prediction_ids: the prediction; may be empty.
    """

    def __init__(self, prediction_ids: Sequence[int]) -> None:
        self._follower = prediction_follower(prediction_ids)
        self._tail: deque[int] = deque(maxlen=MAX_MATCH)
        self._is_taken = bytearray(len(prediction_ids))
        self._num_tokens = 0

    def take(self, token_ids: Sequence[int]) -> None:
        """The answer goes on with these tokens."""
        if not self._is_taken:
            return
        self._num_tokens += len(token_ids)
        for token_id in token_ids:
            self._tail.append(token_id)
            self._follower.take(token_id)
            if self._follower.is_lost:
                self._follower.search(list(self._tail))
            if (match := self._follower.match) is not None and match.length:
                num_agreeing = min(match.length, len(self._tail))
                self._is_taken[match.position - num_agreeing : match.position] = b"\1" * num_agreeing

    @property
    def num_accepted(self) -> int:
        """Tokens of the prediction that are in the answer."""
        return min(self._is_taken.count(1), self._num_tokens)

    @property
    def num_rejected(self) -> int:
        """Tokens of the prediction that are not."""
        return len(self._is_taken) - self.num_accepted
