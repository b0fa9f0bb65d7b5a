"""Prompts to token ids: chats through the model's template, texts through its tokenizer, ids as they are.

Tokenising runs in threads, and only after a bound on the number of characters: the event loop never waits for it.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from jinja2 import TemplateError

from edge_agent.http.errors import ContextLengthExceeded
from edge_agent.http.messages import Message
from edge_agent.http.ports import ChatTokenizer
from edge_agent.http.schema import TemplateFields, shown
from edge_agent.http.settings import HttpSettings
from edge_agent.http.tools import Tool
from specedge.errors import InvalidRequest

PromptIds = tuple[int, ...]
T = TypeVar("T")

_TEMPLATE_ARGUMENTS: Final = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)


class ChatPrompt(NamedTuple):
    """A rendered conversation, as token ids and as text."""

    token_ids: PromptIds
    text: str


def split_prompts(value: Any, max_prompts: int) -> list[str | list[int]]:
    """The `prompt` field as a list of prompts, each a text or token ids.

    Raises:
        InvalidRequest: names what is wrong and where.
    """
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise _refusal("prompt", value, "a string, a list of strings, a list of token ids or a list of such lists")
    if not value:
        raise InvalidRequest("prompt is empty; it must have at least 1 token", param="prompt")
    if _is_id(value[0]):
        return [_ids(value, "prompt")]
    if len(value) > max_prompts:
        raise InvalidRequest(f"prompt has {len(value)} prompts; it may have at most {max_prompts}", param="prompt")
    if isinstance(value[0], list):
        return [_ids(prompt, f"prompt[{index}]") for index, prompt in enumerate(value)]
    for index, prompt in enumerate(value):
        if not isinstance(prompt, str):
            raise _refusal(f"prompt[{index}]", prompt, "a string like the others" if index else "a string")
    return list(value)


class PromptEncoder:
    """Turns prompts into token ids of the target's vocabulary."""

    def __init__(self, tokenizer: ChatTokenizer, settings: HttpSettings) -> None:
        self._tokenizer = tokenizer
        self._max_chars_per_token = settings.max_chars_per_token
        self._threads = asyncio.Semaphore(settings.num_tokenizer_threads)

    async def encode_chat(
        self, request: TemplateFields, messages: list[Message], max_len: int, tools: Sequence[Tool] = ()
    ) -> ChatPrompt:
        """The conversation in the model's own format, ready for the assistant's turn."""
        self._check_length(sum(len(message["content"]) for message in messages), max_len, "messages")
        variables = _template_variables(request)
        if tools:
            variables["tools"] = [tool.definition for tool in tools]

        def encode() -> ChatPrompt:
            text = self._render(messages, variables)
            self._check_length(len(text), max_len, "messages")
            return ChatPrompt(self._tokenise(text, add_special_tokens=False), text)

        return await self._in_thread(encode)

    async def encode_text(
        self, text: str, max_len: int, *, add_special_tokens: bool, param: str = "prompt"
    ) -> PromptIds:
        """Token ids of a text, with the tokenizer's own beginning-of-text token where asked."""
        self._check_length(len(text), max_len, param)
        return await self._in_thread(lambda: self._tokenise(text, add_special_tokens=add_special_tokens))

    async def encode_bad_words(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Token ids of words that are not to be generated, as they are spelled at the start and inside of a text."""

        def encode() -> tuple[tuple[int, ...], ...]:
            spellings = []
            for word in words:
                plain = self._tokenise(word.lstrip(), add_special_tokens=False)
                spaced = self._tokenise(f" {word.lstrip()}", add_special_tokens=False)
                spellings.append(plain)
                if spaced[-len(plain) :] != plain:  # else the plain spelling is enough
                    spellings.append(spaced)
            return tuple(spellings)

        return await self._in_thread(encode) if words else ()

    async def decode(self, token_ids: Sequence[int]) -> str:
        """The text of the ids, special tokens included."""
        ids = list(token_ids)
        decode = partial(self._tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(await self._in_thread(lambda: decode(ids)))

    def spell(self, token_ids: Sequence[int]) -> list[str]:
        """The vocabulary's entry of each id."""
        return [str(self._tokenizer.convert_ids_to_tokens(token_id)) for token_id in token_ids]

    def _render(self, messages: list[Message], variables: dict[str, Any]) -> str:
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, **variables))
        except (TemplateError, LookupError, TypeError, ValueError) as error:
            message = f"the model's chat template does not take these messages: {error}"
            raise InvalidRequest(message, param="messages") from None

    def _tokenise(self, text: str, *, add_special_tokens: bool) -> PromptIds:
        return tuple(self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"])

    def _check_length(self, num_chars: int, max_len: int, param: str) -> None:
        limit = self._max_chars_per_token * max_len
        if num_chars > limit:
            message = (
                f"{param} has {num_chars} characters; at most {limit} are taken, {self._max_chars_per_token} for each "
                f"token of this model's maximum context length of {max_len} tokens"
            )
            raise ContextLengthExceeded(message, param=param)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        async with self._threads:
            return await asyncio.to_thread(work)


def _template_variables(request: TemplateFields) -> dict[str, Any]:
    effort = request.reasoning_effort
    given = {} if effort is None else {"reasoning_effort": effort, "enable_thinking": effort != "none"}
    variables = {**given, **(request.chat_template_kwargs or {})}
    for name in variables:
        if name in _TEMPLATE_ARGUMENTS:
            message = f"chat_template_kwargs has {name!r}, which is no variable of a chat template"
            raise InvalidRequest(message, param="chat_template_kwargs")
    continues = bool(request.continue_final_message)
    asks_turn = not continues if request.add_generation_prompt is None else request.add_generation_prompt
    if continues and asks_turn:
        message = "continue_final_message and add_generation_prompt are both true; at most 1 of them may be"
        raise InvalidRequest(message, param="continue_final_message")
    return {**variables, "add_generation_prompt": asks_turn, "continue_final_message": continues}


def _ids(value: Any, place: str) -> list[int]:
    if not isinstance(value, list):
        raise _refusal(place, value, "a list of token ids like the others")
    if not value:
        raise InvalidRequest(f"{place} is empty; it must have at least 1 token", param="prompt")
    for index, token_id in enumerate(value):
        if not _is_id(token_id):
            raise _refusal(f"{place}[{index}]", token_id, "a token id like the others")
    return value


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _refusal(place: str, value: Any, expected: str) -> InvalidRequest:
    return InvalidRequest(f"{place} is {shown(value)}; it must be {expected}", param="prompt")


def check_prompt_ids(prompt_ids: Sequence[int], vocab_size: int, param: str) -> None:
    """Raises InvalidRequest for an empty prompt or an id outside the vocabulary."""
    if not prompt_ids:
        raise InvalidRequest(f"{param} is empty; it must have at least 1 token", param=param)
    if min(prompt_ids) >= 0 and max(prompt_ids) < vocab_size:
        return
    index = next(i for i, token_id in enumerate(prompt_ids) if not 0 <= token_id < vocab_size)
    message = f"token {index} of {param} is {prompt_ids[index]}; token ids must be between 0 and {vocab_size - 1}"
    raise InvalidRequest(message, param=param)
