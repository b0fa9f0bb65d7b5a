"""Splits an answer into what the model thought and what it says: `<think>...</think>` before the content.

Qwen3, DeepSeek-R1 and their kin write these tags as ordinary text; some chat templates write the opening one into the
prompt, and with thinking disabled both.
"""

from typing import Final

from edge_agent.http.delta import Delta, num_partial

OPEN: Final = "<think>"
CLOSE: Final = "</think>"


def template_thinks(tokenizer: object) -> bool:
    """Whether a tokenizer's chat template knows thoughts."""
    return CLOSE in str(getattr(tokenizer, "chat_template", None))


def begins_inside(prompt_text: str) -> bool:
    """Whether a prompt leaves the answer inside an open thought.

    Args:
        prompt_text: the rendered chat, or its end.
    """
    return prompt_text.rfind(OPEN) > prompt_text.rfind(CLOSE)


class ReasoningOutput:
    """Splits one answer; blank space around the thought belongs to neither part.

    Args:
        is_inside: the prompt has opened the thought already.
    """

    def __init__(self, is_inside: bool) -> None:
        self.is_thinking = is_inside
        self._is_decided = is_inside  # whether there is a thought at all
        self._is_fresh = True  # nothing of the present part has been said
        self._held = ""

    def feed(self, text: str) -> Delta:
        """See `OutputParser.feed`."""
        self._held += text
        if not self._is_decided and not self._decide():
            return Delta()
        if not self.is_thinking:
            return Delta(content=self._say(self._take(len(self._held))))
        end = self._held.find(CLOSE)
        if end < 0:
            told = self._held[: len(self._held) - num_partial(self._held, CLOSE)].rstrip()
            return Delta(reasoning=self._say(self._take(len(told))))
        thought = self._say(self._take(end)).rstrip()
        self._take(len(CLOSE))
        self.is_thinking, self._is_fresh = False, True
        return Delta(reasoning=thought, content=self._say(self._take(len(self._held))))

    def end(self) -> Delta:
        """See `OutputParser.end`."""
        rest = self._say(self._take(len(self._held)))
        return Delta(reasoning=rest) if self.is_thinking else Delta(content=rest)

    def _decide(self) -> bool:
        """Find out whether the answer begins with a thought; False while it could still do so."""
        start = self._held.lstrip()
        if start.startswith(OPEN):
            self.is_thinking = self._is_decided = True
            self._held = start[len(OPEN) :]
        elif OPEN.startswith(start):
            return False
        else:
            self._is_decided, self._is_fresh = True, False  # no thought: the content keeps its blank space
        return True

    def _take(self, num_chars: int) -> str:
        taken, self._held = self._held[:num_chars], self._held[num_chars:]
        return taken

    def _say(self, text: str) -> str:
        if self._is_fresh:
            text = text.lstrip()
            self._is_fresh = not text
        return text
