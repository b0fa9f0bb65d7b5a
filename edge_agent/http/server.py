"""The HTTP server: uvicorn, with bounds on what a client may send, and how slowly, before it is a request."""

import asyncio
import ssl
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import Any, Final, cast

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from edge_agent.http.errors import HeadRefused, describe

MAX_HEAD_BYTES: Final = 32 * 2**10
_HEAD_SLICE_BYTES: Final = 8 * 2**10
_HEAD_TIMEOUT_S: Final = 10.0
IDLE_TIMEOUT_S: Final = 75
"""For which a connection may wait for its next request: longer than clients (5 s for OpenAI's) and proxies (60 s) keep
one, so that none is closed at the moment in which it is used again."""


class BoundedProtocol(H11Protocol):
    """One connection. A client that is silent before its request or slow in sending the head of it is cut off.

    Attributes:
        head_timeout_s: from the connection's beginning, or the first byte after an answer, to the head's last byte.

    Args:
        on_refused: told the status of each answer that is given in the place of the app.
    """

    head_timeout_s = _HEAD_TIMEOUT_S

    def __init__(self, *args: Any, on_refused: Callable[[int], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._on_refused = on_refused
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The time for the first head runs from here."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes what came; a head in slices, because h11 tests its bound only when a head is still incomplete."""
        rest = memoryview(data)
        while rest and not self.transport.is_closing():
            size = _HEAD_SLICE_BYTES if self.conn.their_state is h11.IDLE else len(rest)
            super().data_received(bytes(rest[:size]))
            rest = rest[size:]
        if self.cycle is None or (self.cycle.response_complete and not self._is_idle):
            self._watch()
        else:
            self._unwatch()

    @property
    def _is_idle(self) -> bool:
        """Nothing of a next request has come, and all of the last one."""
        return self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]

    def send_400_response(self, msg: str) -> None:
        """Refuses what h11 could not take."""
        if len(self.conn.trailing_data[0]) > MAX_HEAD_BYTES:
            self._refuse(431, f"request line and headers are too large; at most {MAX_HEAD_BYTES} bytes are accepted")
        else:
            self._refuse(400, "this is not a valid HTTP request")

    def _watch(self) -> None:
        if self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(self.head_timeout_s, self._give_up)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(408, f"the request's headers did not arrive within {self.head_timeout_s:g} seconds")
        else:
            self.transport.abort()

    def _refuse(self, status: int, message: str) -> None:
        """Answers and closes; where an answer is under way already, only closes."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer = describe(HeadRefused(status, message)).response("")
            headers = [
                *self.server_state.default_headers,
                *answer.raw_headers,
                (b"x-request-id", uuid.uuid4().hex.encode()),
                (b"connection", b"close"),
            ]
            for event in (
                h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
            self._on_refused(status)
        self.transport.close()


class HttpServer(uvicorn.Server):
    """Leaves signals to this process, which drains more than HTTP."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


def http_server(
    app: ASGIApp,
    drain_timeout_s: float,
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    on_refused: Callable[[int], None] = lambda status: None,
) -> HttpServer:
    """The server of an app.

    Args:
        app: what answers.
        drain_timeout_s: how long running requests may take to finish after the server was told to end.
        port: where it listens on the loopback interface, 0 taking a free port; unused by one that is given sockets.
        tls: makes it HTTPS.
        on_refused: told the status with which something was refused before it was a request.
    """
    config = uvicorn.Config(
        app,
        port=port,
        http=cast(type[asyncio.Protocol], partial(BoundedProtocol, on_refused=on_refused)),
        ws="none",
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_keep_alive=IDLE_TIMEOUT_S,
        timeout_graceful_shutdown=int(drain_timeout_s),
    )
    if tls is not None:
        config.load()
        config.ssl = tls
    return HttpServer(config)
