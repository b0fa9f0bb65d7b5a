"""The HTTP server: uvicorn, with bounds on what a client may send, and how slowly, before it is a request."""

import asyncio
import logging
import ssl
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import Any, Final, cast

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from edge_agent.http.errors import HeadRefused, describe

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES: Final = 32 * 2**10
_HEAD_SLICE_BYTES: Final = 8 * 2**10
_HEAD_TIMEOUT_S: Final = 10.0
IDLE_TIMEOUT_S: Final = 75
"""For which a connection may wait for its next request: longer than clients (5 s for OpenAI's) and proxies (60 s) keep
one, so that none is closed at the moment in which it is used again."""


class _Early(Exception):
    """A request came before the last one was answered."""


def _no_request() -> HeadRefused:
    return HeadRefused(400, "this is not a valid HTTP request")


def _too_large() -> HeadRefused:
    return HeadRefused(431, f"request line and headers are too large; at most {MAX_HEAD_BYTES} bytes are accepted")


class BoundedProtocol(HttpToolsProtocol):
    """One connection. A client that is silent before its request or slow in sending the head of it is cut off.

    A request that comes before the last one is answered is not read: the connection closes after that answer, as HTTP
    allows, and that the client has left shows at once.

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
        self._is_in_head = True
        self._has_told = False  # the parser, of the end of a head or more, in the bytes that are being fed
        self._num_loose_bytes = 0  # of a head, or between the parts of a body, that the parser has not told of yet
        self._is_deaf = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The time for the first head runs from here."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes what came; a head in slices, because the parser keeps what is not whole."""
        self._unset_keepalive_if_required()
        rest = memoryview(data)
        while rest and not self._is_deaf and not self.transport.is_closing():
            size = _HEAD_SLICE_BYTES if self._is_in_head else len(rest)
            rest = rest[self._feed(rest[:size]) :]
        if self.cycle is None or (self.cycle.response_complete and not self._is_idle):
            self._watch()
        else:
            self._unwatch()

    def _feed(self, part: memoryview) -> int:
        """Returns how many bytes were taken."""
        self._has_told = False
        num_taken = len(part)
        try:
            self.parser.feed_data(part)
        except httptools.HttpParserUpgrade as wish:
            num_taken = wish.args[0]
            self._go_on_as_http()
        except httptools.HttpParserError as error:
            self._stop_reading(error)
            return num_taken
        if not self._has_told:
            self._num_loose_bytes += num_taken
        if self._num_loose_bytes > MAX_HEAD_BYTES:
            self._refuse(_too_large())
        return num_taken

    def _go_on_as_http(self) -> None:
        """A wish for another protocol is ignored; the parser, which left the body to that one, gets the head anew."""
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        try:
            self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))
        except httptools.HttpParserError as error:
            self._stop_reading(error)

    def _stop_reading(self, error: httptools.HttpParserError) -> None:
        """The parser cannot or should not go on."""
        match error.__context__:
            case _Early():
                self._is_deaf, self.cycle.keep_alive = True, False
            case HeadRefused() as refused:
                self._refuse(refused)
            case _:
                logger.debug("no request: %s", error, exc_info=error.__context__)
                self._refuse(_no_request())

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a header; what comes as one after the body is none."""
        if self._is_in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begins a request whose head is within the bounds."""
        wishes_other, is_tunnel = self.parser.should_upgrade(), self.parser.get_method() == b"CONNECT"
        if wishes_other and not is_tunnel:
            return  # `_go_on_as_http` follows
        if self.cycle is not None and not self.cycle.response_complete:
            raise _Early
        num_hosts = sum(name == b"host" for name, _ in self.headers)
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD_BYTES:
            raise _too_large()
        version = self.parser.get_http_version()
        if is_tunnel or version not in ("1.0", "1.1") or num_hosts > 1 or (version == "1.1" and not num_hosts):
            raise _no_request()
        self._is_in_head, self._has_told, self._num_loose_bytes = False, True, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Takes a part of the body."""
        self._has_told, self._num_loose_bytes = True, 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request has ended; that of an upgrade begins anew."""
        if self._is_in_head:
            return
        self._is_in_head, self._has_told, self._num_loose_bytes = True, True, 0
        super().on_message_complete()

    def on_message_begin(self) -> None:
        """A head begins."""
        self._num_loose_bytes += 1
        super().on_message_begin()

    @property
    def _is_idle(self) -> bool:
        """Nothing of a next request has come, and all of the last one."""
        return self._is_in_head and not self._num_loose_bytes

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
        if self._is_in_head and self._num_loose_bytes:
            message = f"the request's headers did not arrive within {self.head_timeout_s:g} seconds"
            self._refuse(HeadRefused(408, message))
        else:
            self.transport.abort()

    def _refuse(self, refused: HeadRefused) -> None:
        """Answers and closes; where an answer is under way already, only closes."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            answer = describe(refused).response("")
            headers = [
                *self.server_state.default_headers,
                *answer.raw_headers,
                (b"x-request-id", uuid.uuid4().hex.encode()),
                (b"connection", b"close"),
            ]
            lines = [f"HTTP/1.1 {refused.status} {HTTPStatus(refused.status).phrase}".encode()]
            lines += [name + b": " + value for name, value in headers]
            self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
            self._on_refused(refused.status)
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
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
