"""Refusals of a request that was turned into a chat, in the words of the request that the client sent."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from specedge.errors import InvalidRequest

_MESSAGE: Final = re.compile(r"messages\[(\d+)\]")


@contextmanager
def own_words(names: Mapping[str, str], places: Sequence[str]) -> Iterator[None]:
    """Errors of the block name the client's own fields.

    Args:
        names: the client's name of each field of a chat that is called otherwise, as patterns and what they become.
        places: where each message of the chat came from.
    """
    try:
        yield
    except InvalidRequest as error:
        raise type(error)(_translated(str(error), names, places), _param(error.param, names, places)) from error


def _param(param: str | None, names: Mapping[str, str], places: Sequence[str]) -> str | None:
    return None if param is None else _translated(param, names, places)


def _translated(text: str, names: Mapping[str, str], places: Sequence[str]) -> str:
    text = _MESSAGE.sub(lambda found: places[int(found[1])], text)
    for pattern, name in names.items():
        text = re.sub(pattern, name, text)
    return text
