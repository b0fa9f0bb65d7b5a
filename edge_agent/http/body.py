"""A request body from bytes to JSON: bounded in size, time and type before a parser sees it."""

import asyncio
from math import isfinite
from typing import Any

from pydantic_core import from_json
from starlette.requests import Request

from edge_agent.http.errors import BodyRefused, ClientDisconnected
from edge_agent.http.settings import HttpSettings
from specedge.errors import InvalidRequest


async def read_json_object(request: Request, settings: HttpSettings) -> dict[str, Any]:
    """The request's JSON object.

    Raises:
        BodyRefused: too large, too slow or of another type.
        InvalidRequest: not JSON (names line and column), or JSON but no object.
        ClientDisconnected: the client left before the end.
    """
    _require_json_type(request)
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            body = await _read(request, settings.max_body_bytes)
    except TimeoutError:
        message = f"the request body did not arrive within {settings.body_timeout_s:g} seconds"
        raise BodyRefused(408, message) from None
    return parse_json_object(body)


def parse_json_object(body: bytes | bytearray) -> dict[str, Any]:
    """Strict JSON: no NaN or infinity, no lone surrogates, bounded depth."""
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        name, remark = _non_finite_field(body)
        raise InvalidRequest(f"the request body is not valid JSON: {error}{remark}", param=name) from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"the request body must be a JSON object, not {_json_type(value)}")
    return value


def _non_finite_field(body: bytes | bytearray) -> tuple[str | None, str]:
    """The first top-level field that is NaN or infinite, as the refusal's param and a remark; nothing if none is."""
    try:
        value = from_json(body, allow_inf_nan=True)
    except ValueError:
        return None, ""
    for name, field in value.items() if isinstance(value, dict) else ():
        if isinstance(field, float) and not isfinite(field):
            return name, f"; {name} is {field}, and numbers must be finite"
    return None, ""


async def _read(request: Request, max_bytes: int) -> bytearray:
    """The body; of one that is too large the rest stays unread, for the HTTP server to drop."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise _too_large(f"{announced} bytes", max_bytes)
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise _too_large(f"more than {max_bytes} bytes", max_bytes)
        if not message.get("more_body", False):
            return body


def _too_large(size: str, max_bytes: int) -> BodyRefused:
    return BodyRefused(413, f"the request body has {size}; at most {max_bytes} bytes are accepted")


def _require_json_type(request: Request) -> None:
    """Refuses what a web page could send to a local server without asking first."""
    content_type = request.headers.get("content-type")
    if content_type is None:
        if "origin" in request.headers:
            raise BodyRefused(415, "the request has no content-type; from a web page it must be application/json")
        return
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise BodyRefused(415, f"the content-type is {media_type[:100]!r}; it must be application/json")


def _json_type(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "a number"
