"""A prompt, and which prompts of a data set a run sends."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from specedge_bench.prompts.errors import EmptyPromptSet, InvalidSelection

Message = tuple[str, str]  # role, content
ALL = -1  # how the published settings write "no limit"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request's input: a conversation or the beginning of a text, never both.

    Args:
        id: unique within its data set; requests of all systems are matched by it.
        kind: "chat" is sent to the chat endpoint, "continuation" to the completions endpoint.
        messages: (role, content) of a chat; the last one is the user's.
        text: what a continuation goes on from.
    """

    id: str
    kind: Literal["chat", "continuation"]
    messages: tuple[Message, ...] = ()
    text: str = ""

    def __post_init__(self) -> None:
        is_chat = self.kind == "chat"
        assert bool(self.messages) == is_chat and bool(self.text) != is_chat
        assert not is_chat or self.messages[-1][0] == "user"

    def marked(self, mark: str) -> "Prompt":
        """The same question with a mark before its first word and in its id: no prefix cache knows it by the other."""
        front = f"({mark}) "
        messages = tuple(
            (role, front + content if not index else content) for index, (role, content) in enumerate(self.messages)
        )
        return replace(self, id=f"{self.id}@{mark}", messages=messages, text=front + self.text if self.text else "")

    @property
    def path(self) -> str:
        """The endpoint that takes this prompt."""
        return "/v1/chat/completions" if self.kind == "chat" else "/v1/completions"

    @property
    def body(self) -> dict[str, object]:
        """The part of the request's body that carries the prompt."""
        if self.kind == "chat":
            return {"messages": [{"role": role, "content": content} for role, content in self.messages]}
        return {"prompt": self.text}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which prompts are sent, in the words of the published settings; -1 or None means all.

    Taken are the prompts at `req_offset`, `req_offset + sample_req_cnt`, `req_offset + 2 * sample_req_cnt`, ... of the
    data set, at most `max_request_num` of them. The seed decides their order alone: two seeds send the same prompts.

    Args:
        req_offset: prompts skipped at the beginning of the data set.
        sample_req_cnt: the sampling interval: one prompt out of every so many is taken.
        max_request_num: the most prompts taken.
        seed: of the shuffle; None keeps the data set's order.
    """

    req_offset: int = 0
    sample_req_cnt: int | None = None
    max_request_num: int | None = None
    seed: int | None = 0

    def __post_init__(self) -> None:
        if self.req_offset < 0:
            raise InvalidSelection(f"req_offset is {self.req_offset}; it must be at least 0")
        for name, value in (("sample_req_cnt", self.sample_req_cnt), ("max_request_num", self.max_request_num)):
            if value is not None and value != ALL and value < 1:
                raise InvalidSelection(f"{name} is {value}; it must be at least 1, or -1 for all")

    def pick(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        """The selected prompts in the order they are sent; reads no further than it must.

        Raises:
            EmptyPromptSet: the data set is empty or shorter than `req_offset`.
        """
        rest = iter(prompts)
        num_passed = sum(1 for _ in islice(rest, self.req_offset))
        stop = None
        interval = _limit(self.sample_req_cnt) or 1
        limit = _limit(self.max_request_num)
        if limit is not None:
            stop = (limit - 1) * interval + 1
        picked = list(islice(rest, 0, stop, interval))
        if not picked and not num_passed:
            raise EmptyPromptSet("the data set has no prompt")
        if not picked:
            raise EmptyPromptSet(f"req_offset is {self.req_offset}, but the data set has only {num_passed} prompts")
        if self.seed is not None:
            random.Random(self.seed).shuffle(picked)
        return picked


def fit(
    prompts: Iterable[Prompt], count_tokens: Callable[[Prompt], int], max_prompt_tokens: int
) -> tuple[list[Prompt], int]:
    """The prompts of at most `max_prompt_tokens` tokens, in order, and how many longer ones were skipped."""
    kept: list[Prompt] = []
    num_skipped = 0
    for prompt in prompts:
        if count_tokens(prompt) <= max_prompt_tokens:
            kept.append(prompt)
        else:
            num_skipped += 1
    return kept, num_skipped


def _limit(value: int | None) -> int | None:
    return None if value == ALL else value
