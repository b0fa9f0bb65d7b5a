"""What a client may call an answer, and the headers that it is in."""

import re
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request

from specedge.errors import InvalidRequest

KEY_HEADER: Final = "Idempotency-Key"
CONVERSATION_HEADER: Final = "X-Conversation-Id"
MAX_NAME_CHARS: Final = 255
_NAME: Final = re.compile(rf"[\x21-\x7e]{{1,{MAX_NAME_CHARS}}}")


@dataclass(frozen=True, slots=True)
class AnswerName:
    """What a request calls its answer.

    Args:
        header: one of the two.
        text: what stands there.
    """

    header: str
    text: str

    @property
    def is_conversation(self) -> bool:
        """Whether it names the last answer of a conversation."""
        return self.header == CONVERSATION_HEADER


def name_of(request: Request) -> AnswerName | None:
    """The request's name for its answer; the key where it has both.

    Raises:
        InvalidRequest: it cannot be a name.
    """
    for header in (KEY_HEADER, CONVERSATION_HEADER):
        text = request.headers.get(header)
        if text is None:
            continue
        if _NAME.fullmatch(text) is None:
            message = f"{header} has {len(text)} characters; it must have 1 to {MAX_NAME_CHARS} visible ASCII ones"
            raise InvalidRequest(message, param=header)
        return AnswerName(header, text)
    return None
