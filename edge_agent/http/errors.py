"""Errors on their way to an HTTP client: one table from exceptions to OpenAI's error shape."""

import logging
import math
from dataclasses import dataclass
from typing import Any, Final

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request

from specedge.errors import (
    CapacityExceeded,
    EdgeStopping,
    InvalidRequest,
    SpecEdgeError,
    TenantLimit,
    UnknownModel,
    VerifierUnavailable,
)

logger = logging.getLogger(__name__)

ANTHROPIC_PATH: Final = "/v1/messages"
_ENGINE_RETRY_AFTER_S: Final = 5.0
_RUNNING_RETRY_AFTER_S: Final = 1.0
_STOPPING_RETRY_AFTER_S: Final = 2.0
_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ContextLengthExceeded(InvalidRequest):
    """Prompt and answer together do not fit the target's context."""


class BodyRefused(Exception):
    """The request body cannot be taken: too large, too slow, or not JSON by its content type.

    Args:
        status: 408, 413 or 415.
        message: names the size, time or type and what is allowed.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class HeadRefused(Exception):
    """What stands before the body cannot be taken: too large, too slow, too many headers, or not HTTP.

    Args:
        status: 400, 408 or 431.
        message: names the size, number or time and what is allowed.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class InvalidApiKey(Exception):
    """The request carries no key that is known here."""


class KeyReused(InvalidRequest):
    """A request has the `Idempotency-Key` of another one; the message names both."""


class AnswerRunning(SpecEdgeError):
    """The answer that a request names is being made for an earlier request."""


class LimitReached(Exception):
    """The request's key has used up what it may.

    Args:
        message: names the limit.
        retry_after_s: when trying again is worth it, in seconds.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ClientDisconnected(Exception):
    """The client went away; nobody reads an answer any more."""


@dataclass(frozen=True, slots=True)
class ApiError:
    """An error as the client sees it."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    @property
    def anthropic_body(self) -> dict[str, Any]:
        """Anthropic's error object."""
        kind = _ANTHROPIC_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}

    def response(self, path: str) -> JSONResponse:
        """The error as a whole answer on a path."""
        headers = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        body = self.anthropic_body if path.startswith(ANTHROPIC_PATH) else self.body
        return JSONResponse(body, self.status, headers)


def describe(error: Exception) -> ApiError:
    """The client's view of any exception; what it may not see becomes a plain 500."""
    message = str(error)
    match error:
        case UnknownModel():
            return ApiError(404, message, "invalid_request_error", error.param or "model", "model_not_found")
        case KeyReused():
            return ApiError(422, message, "invalid_request_error", error.param, "idempotency_key_reused")
        case AnswerRunning():
            return ApiError(
                409, message, "invalid_request_error", code="answer_running", retry_after_s=_RUNNING_RETRY_AFTER_S
            )
        case ContextLengthExceeded():
            return ApiError(400, message, "invalid_request_error", error.param, "context_length_exceeded")
        case InvalidRequest():
            return ApiError(400, message, "invalid_request_error", error.param)
        case InvalidApiKey():
            return ApiError(401, message, "invalid_request_error", code="invalid_api_key")
        case LimitReached():
            return ApiError(
                429, message, "rate_limit_error", code="rate_limit_exceeded", retry_after_s=error.retry_after_s
            )
        case BodyRefused() | HeadRefused():
            return ApiError(error.status, message, "invalid_request_error")
        case TenantLimit():
            return ApiError(429, message, "rate_limit_error", code="tenant_limit", retry_after_s=error.retry_after_s)
        case CapacityExceeded():
            return ApiError(503, message, "server_error", code="overloaded", retry_after_s=error.retry_after_s)
        case VerifierUnavailable():
            return ApiError(
                503, message, "server_error", code="verifier_unavailable", retry_after_s=error.retry_after_s
            )
        case EdgeStopping():
            return ApiError(503, message, "server_error", code="edge_stopping", retry_after_s=_STOPPING_RETRY_AFTER_S)
        case SpecEdgeError():
            return ApiError(503, message, "server_error", code="generation_failed", retry_after_s=_ENGINE_RETRY_AFTER_S)
        case RequestValidationError():
            return ApiError(400, f"the request does not fit this path: {message}", "invalid_request_error")
        case ClientDisconnected():
            return ApiError(499, "the client went away", "invalid_request_error")
        case HTTPException():
            return ApiError(error.status_code, error.detail, "invalid_request_error")
        case _:
            return ApiError(
                500, "internal error; the server's log has the details", "server_error", code="internal_error"
            )


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """Exception handler of the app for every error that is expected."""
    described = describe(error)
    if isinstance(error, HTTPException):
        described = _describe_routing(request, error)
    response = described.response(request.url.path)
    if isinstance(error, HTTPException) and error.headers:
        response.headers.update(error.headers)
    return response


def _describe_routing(request: Request, error: HTTPException) -> ApiError:
    place = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return ApiError(404, f"{place}: there is no such path", "invalid_request_error", code="not_found")
    if error.status_code == 405:
        return ApiError(405, f"{place}: this path does not take that method", "invalid_request_error")
    return describe(error)
