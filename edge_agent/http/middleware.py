"""What surrounds every request: its id, its count, the last net for errors, and the bounds on it."""

import logging
import re
import time
import uuid
from typing import Final

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge_agent.http.access import AccessControl
from edge_agent.http.api_keys import ApiKeyFile
from edge_agent.http.errors import HeadRefused, describe
from edge_agent.http.request_log import NO_ANSWER, RequestOutcome, logged_request
from edge_agent.http.settings import HttpSettings
from edge_agent.http.turnaround import Turnaround
from edge_agent.http.unread import GENERATION_PATHS, Refusal, RefuseUnread
from edge_agent.metrics import EdgeMetrics
from specedge import __version__
from specedge.errors import CapacityExceeded

logger = logging.getLogger(__name__)

_SANE_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_MAX_HEADERS: Final = 128
_SHOWN_TO_PAGES: Final = (
    "x-request-id",
    "retry-after",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-specedge-version",
    "idempotent-replayed",
    "x-specedge-degraded",
    "x-specedge-tokens-per-verification",
    "x-specedge-draft-tokens",
    "x-specedge-accepted-tokens",
)


def surround(app: Starlette, settings: HttpSettings, metrics: EdgeMetrics, refusal: Refusal) -> None:
    """Puts everything that surrounds requests around the app, the innermost first.

    Raises:
        SettingsError: the file of API keys is wrong.
    """
    app.add_middleware(ConcurrencyLimit, max_concurrent=settings.max_concurrent_requests)
    app.add_middleware(RefuseUnread, refusal=refusal, metrics=metrics)
    if settings.api_keys_file is not None:
        keys = ApiKeyFile(settings.api_keys_file, settings.api_keys_check_s)
        app.add_middleware(AccessControl, keys=keys, metrics=metrics)
    app.add_middleware(RequestEnvelope, metrics=metrics)
    if settings.cors_origins:
        # Outermost: a page asks without a key whether it may ask, and can read refusals too.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=_SHOWN_TO_PAGES,
        )


class RequestEnvelope:
    """Gives every answer an `x-request-id` (the client's own if it is sane), counts it, and lets no error through."""

    def __init__(self, app: ASGIApp, metrics: EdgeMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # what can be read has a head; the server leaves its body out
        request_id = _request_id(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        with logged_request(scope, request_id) as outcome:
            await self._answer(scope, receive, send, request_id, outcome)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, request_id: str, outcome: RequestOutcome
    ) -> None:
        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                outcome.status = str(message["status"])
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["x-specedge-version"] = __version__
            await send(message)

        try:
            if (num_headers := len(scope["headers"])) > _MAX_HEADERS:
                message = f"the request has {num_headers} headers; at most {_MAX_HEADERS} are accepted"
                await describe(HeadRefused(431, message)).response(scope["path"])(scope, receive, send_with_id)
                return
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            logger.exception("request %s failed", request_id)
            if outcome.status != NO_ANSWER:
                raise
            await describe(error).response(scope["path"])(scope, receive, send_with_id)
        finally:
            path = scope["path"] if scope["path"] in GENERATION_PATHS else "other"
            endpoint = getattr(scope.get("route"), "path", path)
            self._metrics.http_requests.labels(endpoint, outcome.status).inc()


class ConcurrencyLimit:
    """Refuses generation requests beyond a number at a time, before their bodies are read."""

    def __init__(self, app: ASGIApp, max_concurrent: int) -> None:
        self._app = app
        self._max_concurrent = max_concurrent
        self._num_running = 0
        self._turnaround = Turnaround()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on if there is room."""
        if scope["type"] != "http" or scope["path"] not in GENERATION_PATHS:
            await self._app(scope, receive, send)
            return
        if self._num_running >= self._max_concurrent:
            message = (
                f"{self._num_running} requests are being served, and {self._max_concurrent} are the most at a time"
            )
            error = CapacityExceeded(message, self._turnaround.next_end_s(self._num_running))
            await describe(error).response(scope["path"])(scope, receive, send)
            return
        self._num_running += 1
        began_s = time.perf_counter()
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_running -= 1
            self._turnaround.ended(time.perf_counter() - began_s)


def _request_id(given: str | None) -> str:
    if given is not None and _SANE_REQUEST_ID.fullmatch(given):
        return given
    return uuid.uuid4().hex
