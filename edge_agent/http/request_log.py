"""A line in the log for each request when it is over."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from opentelemetry import trace
from starlette.types import Scope

from specedge.logs import log_context

logger = logging.getLogger(__name__)

NO_ANSWER: Final = "499"
"""Stands for the status of a request whose client left before it had one."""


class RequestOutcome:
    """The status that was sent."""

    status = NO_ANSWER


@contextmanager
def logged_request(scope: Scope, request_id: str) -> Iterator[RequestOutcome]:
    """Records made inside carry the request's id, and so does the span that FastAPI has begun for it.

    The line has method, path, status and duration, and of a generation the number of its tokens: never their text.
    Requests that are refused unread have one for many of them (`edge_agent.http.unread`).
    """
    outcome = RequestOutcome()
    trace.get_current_span().set_attribute("specedge.request.id", request_id)
    began_s = time.perf_counter()
    with log_context(request_id=request_id):
        try:
            yield outcome
        finally:
            _log(scope, outcome.status, time.perf_counter() - began_s)


def _log(scope: Scope, status: str, seconds: float) -> None:
    fields: dict[str, Any] = {"method": scope["method"], "path": scope["path"], "status": int(status)}
    fields["seconds"] = round(seconds, 4)
    totals = scope["state"].get("totals")
    if totals is not None:
        fields |= {"prompt_tokens": totals.num_prompt_tokens, "completion_tokens": totals.num_completion_tokens}
    is_of_interest = totals is not None or (int(status) >= 400 and not scope["state"].get("is_refused_unread"))
    level = logging.INFO if is_of_interest else logging.DEBUG
    logger.log(level, "%s %s: %s after %.3f s", scope["method"], scope["path"], status, seconds, extra=fields)
