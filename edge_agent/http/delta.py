"""What a piece of an answer's text turns out to be: content, reasoning, or a part of a tool call."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """What is new in a tool call.

    Attributes:
        index: of the call in its answer.
        id, name: with the first delta of a call only; empty later.
        arguments: the next characters of the arguments' JSON text.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new in an answer."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.tool_calls)

    def __add__(self, later: "Delta") -> "Delta":
        return Delta(self.content + later.content, self.reasoning + later.reasoning, self.tool_calls + later.tool_calls)


def joined(deltas: Iterable[Delta]) -> Delta:
    """An answer's deltas in one, with every tool call whole."""
    parts = list(deltas)
    calls: dict[int, list[ToolCallDelta]] = {}
    for call in (call for part in parts for call in part.tool_calls):
        calls.setdefault(call.index, []).append(call)
    return Delta(
        "".join(part.content for part in parts),
        "".join(part.reasoning for part in parts),
        tuple(
            ToolCallDelta(index, said[0].id, said[0].name, "".join(call.arguments for call in said))
            for index, said in calls.items()
        ),
    )


class OutputParser(Protocol):
    """Tells the parts of one answer apart as its text arrives; what it has said it never takes back."""

    @property
    def is_thinking(self) -> bool:
        """Whether the text read last belongs to a thought that is not over."""

    def feed(self, text: str) -> Delta:
        """What the text adds, as far as that can be told yet."""

    def end(self) -> Delta:
        """What was held back, now that the answer has ended."""


class PlainOutput:
    """All text is content."""

    is_thinking = False

    def feed(self, text: str) -> Delta:
        """See `OutputParser.feed`."""
        return Delta(content=text)

    def end(self) -> Delta:
        """See `OutputParser.end`."""
        return Delta()


class ChainedOutput:
    """What one parser takes for content is parsed further by another."""

    def __init__(self, first: OutputParser, second: OutputParser) -> None:
        self._first = first
        self._second = second

    @property
    def is_thinking(self) -> bool:
        """See `OutputParser.is_thinking`."""
        return self._first.is_thinking

    def feed(self, text: str) -> Delta:
        """See `OutputParser.feed`."""
        return self._pass_on(self._first.feed(text))

    def end(self) -> Delta:
        """See `OutputParser.end`."""
        return self._pass_on(self._first.end()) + self._second.end()

    def _pass_on(self, delta: Delta) -> Delta:
        rest = Delta(reasoning=delta.reasoning, tool_calls=delta.tool_calls)
        return rest + self._second.feed(delta.content) if delta.content else rest


def num_partial(text: str, tag: str) -> int:
    """Length of the longest end of `text` that could become the tag."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)
