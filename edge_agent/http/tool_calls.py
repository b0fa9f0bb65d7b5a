"""Finds tool calls in an answer's text, in the formats that models were trained to write.

Hermes and Qwen write `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, Llama 3 writes bare objects
`{"name": ..., "parameters": {...}}` instead of an answer.
"""

from collections.abc import Callable
from hashlib import sha256
from typing import Final, Literal

from edge_agent.http.delta import Delta, OutputParser, ToolCallDelta, num_partial
from edge_agent.http.json_call import JsonCall

ToolFormat = Literal["hermes", "llama"]

OPEN: Final = "<tool_call>"
CLOSE: Final = "</tool_call>"


def format_of_template(tokenizer: object) -> ToolFormat:
    """The format that a tokenizer's chat template shows its model; hermes where it shows none."""
    template = str(getattr(tokenizer, "chat_template", None))
    return "llama" if OPEN not in template and '"parameters"' in template else "hermes"


class _Calls:
    """The calls of one answer, told part by part.

    Args:
        new_id: makes an id for a call.
        is_parallel: calls after the first are told too.

    Attributes:
        num_begun: calls whose name has been told.
    """

    def __init__(self, new_id: Callable[[], str], *, is_parallel: bool) -> None:
        self.num_begun = 0
        self._new_id = new_id
        self._is_parallel = is_parallel
        self._is_named = False

    def told(self, call: JsonCall) -> Delta:
        """What the call at hand has become."""
        if not call.name or call.is_refused or (self.num_begun and not self._is_named and not self._is_parallel):
            return Delta()
        arguments = call.take_arguments()
        if not self._is_named:
            self._is_named = True
            self.num_begun += 1
            return Delta(tool_calls=(ToolCallDelta(self.num_begun - 1, self._new_id(), call.name, arguments),))
        return Delta(tool_calls=(ToolCallDelta(self.num_begun - 1, arguments=arguments),) if arguments else ())

    def next(self) -> None:
        """The call at hand has ended."""
        self._is_named = False


class HermesOutput:
    """Calls between tags; blank space around them is no content."""

    is_thinking = False

    def __init__(self, new_id: Callable[[], str], *, is_parallel: bool = True) -> None:
        self._calls = _Calls(new_id, is_parallel=is_parallel)
        self._held = ""
        self._call: JsonCall | None = None
        self._is_closing = False  # the closing tag has not come yet
        self._is_after_call = False  # nothing but blank space has come since

    def feed(self, text: str) -> Delta:
        """See `OutputParser.feed`."""
        self._held += text
        delta = Delta()
        while (step := self._step()) is not None:
            delta += step
        return delta

    def end(self) -> Delta:
        """See `OutputParser.end`."""
        held, self._held = self._held, ""
        if self._call is not None and not self._call.name:
            held = OPEN + self._call.text + held
        return Delta(content=held.lstrip() if self._is_after_call else held)

    def _step(self) -> Delta | None:
        """One move through the text held; None when more text is needed."""
        if self._call is not None:
            return self._read_call(self._call)
        if self._is_after_call:
            self._held = self._held.lstrip()
        if self._is_closing:
            return self._close()
        start = self._held.find(OPEN)
        if start >= 0:
            content, self._held = self._held[:start].rstrip(), self._held[start + len(OPEN) :]
            self._call = JsonCall()
            return Delta(content=content)
        kept = self._held[: len(self._held) - num_partial(self._held, OPEN)].rstrip()
        if not kept:
            return None
        self._held = self._held[len(kept) :]
        self._is_after_call = False
        return Delta(content=kept)

    def _read_call(self, call: JsonCall) -> Delta | None:
        if not self._held:
            return None
        self._held = call.feed(self._held)
        if call.is_refused:
            self._call, self._is_after_call = None, False
            return Delta(content=OPEN + call.text)
        told = self._calls.told(call)
        if call.is_done:
            self._calls.next()
            self._call, self._is_closing, self._is_after_call = None, True, True
        return told

    def _close(self) -> Delta | None:
        """Drop the closing tag; a model that forgets it is forgiven."""
        if self._held.startswith(CLOSE):
            self._held = self._held[len(CLOSE) :]
        elif CLOSE.startswith(self._held):
            return None
        self._is_closing = False
        return Delta()


class LlamaOutput:
    """An answer that begins with an object is calls; any other is content."""

    is_thinking = False

    def __init__(self, new_id: Callable[[], str], *, is_parallel: bool = True) -> None:
        self._calls = _Calls(new_id, is_parallel=is_parallel)
        self._call = JsonCall()
        self._is_content = False

    def feed(self, text: str) -> Delta:
        """See `OutputParser.feed`."""
        delta = Delta()
        while text and not self._is_content:
            if self._calls.num_begun and not self._call.text:
                text = text.lstrip("; \n")  # what models write between calls
            text = self._call.feed(text)
            if self._call.is_refused:
                self._is_content = True
                text = self._call.text + text
            else:
                delta += self._calls.told(self._call)
            if self._call.is_done:
                self._calls.next()
                self._call = JsonCall()
        return delta + Delta(content=text)

    def end(self) -> Delta:
        """See `OutputParser.end`."""
        is_told = self._is_content or self._call.name
        return Delta() if is_told else Delta(content=self._call.text)


class CallIds:
    """Ids for the tool calls of one answer, the same whenever it is told.

    Args:
        answer: the answer's id and the choice's number.
    """

    def __init__(self, answer: str) -> None:
        self._answer = answer
        self._num_drawn = 0

    def __call__(self) -> str:
        self._num_drawn += 1
        return f"call_{sha256(f'{self._answer} {self._num_drawn}'.encode()).hexdigest()[:24]}"


def tool_output(tool_format: ToolFormat, new_id: Callable[[], str], *, is_parallel: bool = True) -> OutputParser:
    """A parser for one answer; of calls after the first it tells only where they are allowed."""
    parser = HermesOutput if tool_format == "hermes" else LlamaOutput
    return parser(new_id, is_parallel=is_parallel)
