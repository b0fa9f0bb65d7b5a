"""What is kept of a session for people who look later: a span with its verifications, a line in the log at its end."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace

from specedge.logs import log_context
from specedge.wire.messages import Draining, OpenSession, SessionOpened, Verdict

logger = logging.getLogger(__name__)


class SessionRecord:
    """Counts what one stream was sent; never what it said."""

    def __init__(self, span: trace.Span, opening: OpenSession) -> None:
        self._span = span
        self._is_recording = span.is_recording()
        self._opening = opening
        self._began_s = time.perf_counter()
        self._num_tokens = 0
        self._num_accepted = 0
        self._num_verifications = 0
        self._finish_reason = ""

    def sent(self, message: SessionOpened | Verdict | Draining) -> None:
        """A message went out."""
        if isinstance(message, Draining):
            self._span.add_event("draining")
            return
        if isinstance(message, SessionOpened):
            self._span.add_event("opened", {"cached_tokens": message.num_cached_tokens})
            return
        self._num_verifications += 1
        self._num_tokens += len(message.token_ids)
        self._num_accepted += message.num_accepted
        self._finish_reason = message.finish_reason
        if self._is_recording:
            attributes = {
                "tokens": len(message.token_ids),
                "verified_nodes": message.num_nodes_verified,
                "accepted_nodes": message.num_accepted,
                "queue_us": message.queue_us,
                "step_us": message.step_us,
            }
            self._span.add_event("verification", attributes)

    def ended(self) -> None:
        """Nothing more will be sent: a session without a finish reason was cancelled, or failed."""
        opening = self._opening
        fields: dict[str, str | int] = {
            "finish_reason": self._finish_reason or "none",
            "prompt_tokens": len(opening.prompt_ids),
            "resumed_tokens": len(opening.committed_ids),
            "tokens": self._num_tokens,
            "accepted_tokens": self._num_accepted,
            "verifications": self._num_verifications,
        }
        self._span.set_attributes({f"specedge.session.{name}": value for name, value in fields.items()})
        seconds = time.perf_counter() - self._began_s
        logger.info(
            "session %s: %s after %d tokens in %d verifications and %.3f s",
            opening.request_id,
            self._finish_reason or "left",
            self._num_tokens,
            self._num_verifications,
            seconds,
            extra={**fields, "seconds": round(seconds, 4)},
        )


@contextmanager
def session_record(span: trace.Span, opening: OpenSession) -> Iterator[SessionRecord]:
    """The record of a session that lasts as long as the block; log records made inside name the session."""
    with log_context(session_id=opening.request_id):
        record = SessionRecord(span, opening)
        try:
            yield record
        finally:
            record.ended()
