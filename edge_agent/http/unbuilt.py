"""Fields that other servers act on and this one does not: a value that asks for something is refused, never ignored.

A value that asks for nothing (null, or what leaving the field out means) is accepted, since clients send those.
Whatever is in neither this table nor the request schema is ignored.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from edge_agent.http.schema import shown
from specedge.errors import InvalidRequest


def _one_of(*neutral: Any) -> Callable[[Any], bool]:
    return lambda value: any(value is n or (value == n and type(value) is type(n)) for n in neutral)


_NOTHING = _one_of()
_SHARED: Final[Mapping[str, Callable[[Any], bool]]] = {
    "ec_transfer_params": _NOTHING,
    "early_stopping": _one_of(False),
    "guided_decoding_backend": _one_of("auto", "xgrammar"),
    "guided_whitespace_pattern": _NOTHING,
    "kv_transfer_params": _NOTHING,
    "length_penalty": _one_of(1, 1.0),
    "logits_processors": _one_of([]),
    "logprob_token_ids": _NOTHING,
    "repetition_detection": _NOTHING,
    "truncate_prompt_tokens": _NOTHING,
    "use_beam_search": _one_of(False),
    "watermarking": _one_of(False),
}
_CHAT: Final[Mapping[str, Callable[[Any], bool]]] = {
    **_SHARED,
    "add_special_tokens": _one_of(False),
    "audio": _NOTHING,
    "chat_template": _NOTHING,
    "documents": _one_of([]),
    "echo": _one_of(False),
    "function_call": _one_of("none"),
    "functions": _one_of([]),
    "media_io_kwargs": _NOTHING,
    "mm_processor_kwargs": _NOTHING,
    "modalities": _one_of(["text"], []),
    "moderation": _NOTHING,
    "return_prompt_text": _one_of(False),
    "thinking_token_budget": _NOTHING,
    "verbosity": _one_of("medium"),
    "web_search_options": _NOTHING,
}
_COMPLETION: Final[Mapping[str, Callable[[Any], bool]]] = {
    **_SHARED,
    "best_of": _one_of(1),
    "prompt_embeds": _NOTHING,
    "suffix": _one_of(""),
}


def refuse_unbuilt_chat_fields(payload: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for a chat field that asks for what is not built."""
    _refuse(payload, _CHAT)


def refuse_unbuilt_completion_fields(payload: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for a completion field that asks for what is not built."""
    _refuse(payload, _COMPLETION)


def _refuse(payload: Mapping[str, Any], table: Mapping[str, Callable[[Any], bool]]) -> None:
    for name, value in payload.items():
        is_neutral = table.get(name)
        if is_neutral is not None and value is not None and not is_neutral(value):
            raise InvalidRequest(f"{name} is {shown(value)}, which is not supported here; leave it out", param=name)
