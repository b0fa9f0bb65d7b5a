"""Log records of both processes: a line each, as JSON for machines or as text for people.

Every record carries what `log_context` says at the moment it is made, and the trace it belongs to; JSON shows both.
"""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Literal

from opentelemetry import trace
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from specedge.log_writer import LogWriter

LogFormat = Literal["auto", "json", "text"]

_TEXT: Final = "%(asctime)s %(levelname)s {}%(name)s: %(message)s"
_NO_CONTEXT: Final[Mapping[str, str]] = {}
_NOISY: Final = ("httpx", "httpcore", "urllib3", "huggingface_hub", "filelock", "asyncio")
# Where torchao is installed, transformers imports it, which reports libraries that nobody here uses.
_NOISIER: Final = ("torchao", "torch.utils._pytree")

_context: ContextVar[Mapping[str, str]] = ContextVar("log_context", default=_NO_CONTEXT)


def start_logging(level: str, log_format: LogFormat = "auto", process: str = "") -> None:
    """Write the records of this process to standard error, which never blocks or ends it.

    Args:
        level: the least severe level that is written.
        log_format: auto is text on a terminal and JSON elsewhere.
        process: names one of several processes that write to the same place.
    """
    is_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    handler = LogWriter(sys.stderr)
    handler.addFilter(add_context)
    handler.setFormatter(_text_formatter(process) if is_text else _json_formatter(process))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    if level != "debug":
        for name in _NOISY:
            logging.getLogger(name).setLevel(logging.WARNING)
        for name in _NOISIER:
            logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def log_context(**fields: str) -> Iterator[None]:
    """Give `fields` to every record made inside, in tasks begun inside too."""
    token = _context.set({**_context.get(), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def context_field(name: str) -> str | None:
    """What `log_context` says of `name` at this moment."""
    return _context.get().get(name)


def add_context(record: logging.LogRecord) -> bool:
    """A filter that drops nothing: it adds the context and the trace to the record."""
    for name, value in _context.get().items():
        setattr(record, name, value)
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        record.trace_id = trace.format_trace_id(span.trace_id)
        record.span_id = trace.format_span_id(span.span_id)
    return True


def _text_formatter(process: str) -> logging.Formatter:
    return logging.Formatter(_TEXT.format(f"[{process}] " if process else ""))


def _json_formatter(process: str) -> logging.Formatter:
    return JsonFormatter(
        ["levelname", "name", "message"],
        rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception", "stack_info": "stack"},
        rename_fields_keep_missing=False,
        reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # uvicorn's, for terminals
        timestamp="time",
        static_fields={"process": process} if process else {},
    )
