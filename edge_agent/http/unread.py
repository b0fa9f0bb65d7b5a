"""Refuses requests unread while the verifiers are known to refuse every one: a crowd costs the edge little of its time.

What could be otherwise for a request goes the ordinary way: it names a priority, or an answer that may be recorded.
"""

import asyncio
import logging
import re
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge_agent.http.answer_names import CONVERSATION_HEADER, KEY_HEADER
from edge_agent.http.errors import ANTHROPIC_PATH, describe
from edge_agent.metrics import EdgeMetrics
from specedge.errors import CapacityExceeded

logger = logging.getLogger(__name__)

Refusal = Callable[[], CapacityExceeded | None]
"""What every request of ordinary priority is told now; None: requests have to be looked at."""

GENERATION_PATHS: Final = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", ANTHROPIC_PATH})
MAX_SCANNED_BYTES: Final = 2**18
"""A longer body goes the ordinary way."""

_NAMING_HEADERS: Final = frozenset({KEY_HEADER.lower().encode(), CONVERSATION_HEADER.lower().encode()})
_LOG_EVERY_S: Final = 10.0
_PATIENCE_S: Final = 1.0
"""For the body; then its reader's own patience begins."""
_MAY_NAME_PRIORITY: Final = re.compile(rb"priority|\\u00[67]")
"""The field's name, or a letter of it as JSON can spell it."""


class RefuseUnread:
    """Stands before everything that costs work, and behind the check of keys and their limits."""

    def __init__(self, app: ASGIApp, refusal: Refusal, metrics: EdgeMetrics) -> None:
        self._app = app
        self._refusal = refusal
        self._metrics = metrics
        self._num_unlogged = 0
        self._logged_at_s = -_LOG_EVERY_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, unless it is certain to be refused."""
        if not _is_generation(scope) or self._refusal() is None:
            await self._app(scope, receive, send)
            return
        body = _Body(receive)
        error = self._refusal() if await body.is_whole() and not body.may_name_priority else None
        if error is None:
            await self._app(scope, body.replay, send)
            return
        self._metrics.refused_unread.inc()
        self._log(error)
        scope["state"]["is_refused_unread"] = True
        await describe(error).response(scope["path"])(scope, receive, send)

    def _log(self, error: CapacityExceeded) -> None:
        self._num_unlogged += 1
        if (now_s := monotonic()) - self._logged_at_s >= _LOG_EVERY_S:
            logger.warning("%d requests were refused unread since the last such line: %s", self._num_unlogged, error)
            self._num_unlogged, self._logged_at_s = 0, now_s


class _Body:
    """A body that is read ahead of its reader."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: deque[Message] = deque()

    async def is_whole(self) -> bool:
        """Reads; False for one that is too long, too slow, or of a client that has left."""
        num_bytes, has_more = 0, True
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while has_more and num_bytes <= MAX_SCANNED_BYTES:
                    message = await self._receive()
                    self._messages.append(message)
                    if message["type"] != "http.request":
                        return False
                    num_bytes += len(message.get("body", b""))
                    has_more = message.get("more_body", False)
        except TimeoutError:
            return False
        return not has_more and num_bytes <= MAX_SCANNED_BYTES

    @property
    def may_name_priority(self) -> bool:
        """Whether the priority may be another than the ordinary one."""
        whole = b"".join(message.get("body", b"") for message in self._messages)
        return _MAY_NAME_PRIORITY.search(whole) is not None

    async def replay(self) -> Message:
        """What was read, then what comes."""
        return self._messages.popleft() if self._messages else await self._receive()


def _is_generation(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["path"] not in GENERATION_PATHS or scope["method"] != "POST":
        return False
    return not any(name in _NAMING_HEADERS for name, _ in scope["headers"])
