"""Reads one tool call, a JSON object with a name and arguments, while it is still being written.

The arguments are passed on as the model wrote them, character by character: parsing and printing them again would have
to wait for their end.
"""

import json
from typing import Final

_NAME: Final = "name"
_ARGUMENTS: Final = ("arguments", "parameters")
_BLANKS: Final = " \t\r\n"  # what JSON calls blank
_FIRST_KEYS: Final = (_NAME, *_ARGUMENTS, "type", "id")


class JsonCall:
    """One call.

    Attributes:
        text: what was taken so far.
        name: known as soon as it was read; empty before.
        is_done: the object is complete.
        is_refused: this is no tool call.
    """

    def __init__(self) -> None:
        self.text = ""
        self.name = ""
        self.is_done = False
        self.is_refused = False
        self._depth = 0
        self._is_string = self._is_escaped = False
        self._string_start = 0
        self._key: str | None = None  # of the value at hand, in the outermost object
        self._value_start = 0
        self._arguments = (0, 0)  # where they begin and end, as far as read
        self._num_told = 0

    def feed(self, text: str) -> str:
        """Take text up to the end of the object; returns what is left over."""
        for index, character in enumerate(text):
            self.text += character
            if self._is_string:
                self._in_string(character)
            else:
                self._outside_string(character)
            if self.is_done or self.is_refused:
                return text[index + 1 :]
        return ""

    def take_arguments(self) -> str:
        """The arguments' text since the last call; nothing before the name is known."""
        if not self.name:
            return ""
        start, end = self._arguments
        if self._key in _ARGUMENTS:
            start, end = self._value_start, len(self.text)
        written = self.text[start:end].strip()
        if written.startswith('"'):  # an object spelled as a string
            written = _unquoted(written) if self.is_done else ""
        elif self.is_done and not written:
            written = "{}"
        new, self._num_told = written[self._num_told :], max(self._num_told, len(written))
        return new

    def _in_string(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        elif character == '"':
            self._is_string = False

    def _outside_string(self, character: str) -> None:
        is_end = False
        if character == '"':
            self._is_string, self._string_start = True, len(self.text) - 1
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            is_end = self._depth == 0
        if self._depth == 1 and character == ":" and self._key is None:
            self._key = _unquoted(self.text[self._string_start : -1].strip())
            self._value_start = len(self.text)
            self.is_refused = self._is_first_key and self._key not in _FIRST_KEYS
        elif is_end or (self._depth == 1 and character == ","):
            self._end_value()
            self.is_done = is_end
            self.is_refused = is_end and not self.name
        elif self._depth == 0 and character not in _BLANKS:
            self.is_refused = True

    @property
    def _is_first_key(self) -> bool:
        return self.text.count('"') == 2

    def _end_value(self) -> None:
        if self._key == _NAME:
            self.name = _unquoted(self.text[self._value_start : -1].strip())
        elif self._key in _ARGUMENTS:
            self._arguments = (self._value_start, len(self.text) - 1)
        self._key = None


def _unquoted(text: str) -> str:
    """What a JSON string says; the text itself if it is none."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str) else text
