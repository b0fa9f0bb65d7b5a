"""What a piece of an answer's text turns out to be: content, reasoning, or a part of a tool call."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new in an answer."""

    content: str = ""
    reasoning: str = ""

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning)

    def __add__(self, later: "Delta") -> "Delta":
        return Delta(self.content + later.content, self.reasoning + later.reasoning)


def joined(deltas: Iterable[Delta]) -> Delta:
    """An answer's deltas in one."""
    parts = list(deltas)
    return Delta("".join(part.content for part in parts), "".join(part.reasoning for part in parts))


class OutputParser(Protocol):
    """Tells the parts of one answer apart as its text arrives; what it has said it never takes back."""

    def feed(self, text: str) -> Delta:
        """What the text adds, as far as that can be told yet."""

    def end(self) -> Delta:
        """What was held back, now that the answer has ended."""


class PlainOutput:
    """All text is content."""

    def feed(self, text: str) -> Delta:
        return Delta(content=text)

    def end(self) -> Delta:
        return Delta()
