"""Who may use the API, and how much: every request's key, its limits, and what it has used."""

import time
from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge_agent.http.api_keys import ApiKey, ApiKeyFile
from edge_agent.http.errors import InvalidApiKey, LimitReached, describe
from edge_agent.http.rate_limit import KeyLimits
from edge_agent.http.writer import AnswerTotals
from edge_agent.metrics import EdgeMetrics

OPEN_PATHS: Final = frozenset({"/health", "/ready", "/metrics", "/version", "/docs", "/openapi.json"})
_OPEN_TO_READ: Final = frozenset({"/"})
_BEARER: Final = b"bearer "


class AccessControl:
    """Lets requests through that carry a key of the file; POST requests, which cost work, as far as its limits go.

    A refusal comes before the body is read. What a key has used is counted when its request ends.

    Args:
        app: what lies behind.
        keys: the keys.
        metrics: written to.
        clock: steady time in seconds.
    """

    def __init__(
        self, app: ASGIApp, keys: ApiKeyFile, metrics: EdgeMetrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics
        self._clock = clock
        self._limits: dict[str, KeyLimits] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on if its key allows it."""
        if scope["type"] != "http" or _is_open(scope):
            await self._app(scope, receive, send)
            return
        await self._keys.refresh()
        presented = _presented_keys(scope)
        key = next((found for each in presented if (found := self._keys.find(each))), None)
        if key is None:
            self._metrics.refused_requests.labels("", "unknown_key" if presented else "no_key").inc()
            what = "this API key is not known here" if presented else "an API key is needed"
            error = InvalidApiKey(f"{what}; send it as 'Authorization: Bearer KEY' or as 'x-api-key: KEY'")
            await describe(error).response(scope["path"])(scope, receive, send)
        elif scope["method"] == "POST":
            await self._serve(key, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _serve(self, key: ApiKey, scope: Scope, receive: Receive, send: Send) -> None:
        limits = self._limits.setdefault(key.name, KeyLimits())
        refusal = limits.admit(key.requests_per_minute, key.max_concurrent, self._clock())

        is_settled, began_s = refusal is not None, self._clock()

        def settle() -> None:
            nonlocal is_settled
            if not is_settled:
                is_settled = True
                limits.release(self._clock() - began_s)
                self._meter(key, scope["state"].get("totals"))

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *limits.headers(self._clock())]
            elif not message.get("more_body", False):
                settle()  # before the client can know that it may ask again
            await send(message)

        if refusal is not None:
            self._metrics.refused_requests.labels(key.name, refusal.reason).inc()
            error = LimitReached(refusal.message, refusal.retry_after_s)
            await describe(error).response(scope["path"])(scope, receive, send_with_limits)
            return
        self._metrics.key_requests.labels(key.name).inc()
        scope["state"]["api_key"] = key.digest
        try:
            await self._app(scope, receive, send_with_limits)
        finally:
            settle()

    def _meter(self, key: ApiKey, totals: AnswerTotals | None) -> None:
        if totals is not None and totals.has_begun:
            self._metrics.key_prompt_tokens.labels(key.name).inc(totals.num_prompt_tokens)
            num_new = totals.num_completion_tokens - totals.num_replayed_tokens
            self._metrics.key_generated_tokens.labels(key.name).inc(num_new)


def _is_open(scope: Scope) -> bool:
    path: str = scope["path"]
    return path in OPEN_PATHS or (path in _OPEN_TO_READ and scope["method"] in ("GET", "HEAD"))


def _presented_keys(scope: Scope) -> list[bytes]:
    """The keys of the first header of each kind."""
    bearer = plain = b""
    for name, value in scope["headers"]:
        if name == b"authorization" and not bearer and value[: len(_BEARER)].lower() == _BEARER:
            bearer = value[len(_BEARER) :].strip()
        elif name == b"x-api-key" and not plain:
            plain = value.strip()
    return [key for key in (bearer, plain) if key]
