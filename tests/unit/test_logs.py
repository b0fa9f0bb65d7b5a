"""What a line of the log holds, in both formats, and what a request and a session add to it."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider

from specedge import logs
from specedge.logs import LogFormat, log_context

logger = logging.getLogger("specedge.test")


def start_logging(level: str, log_format: LogFormat = "auto", process: str = "") -> None:
    """As a process does, whose root logger has no handlers yet."""
    logging.getLogger().handlers.clear()
    logs.start_logging(level, log_format, process)


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[str]]]:
    """What has gone to standard error; the root logger is as before afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def read() -> list[str]:
        for handler in root.handlers:
            handler.flush()
        return capsys.readouterr().err.splitlines()

    yield read
    for handler in root.handlers[:]:
        root.removeHandler(handler)
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)


def test_a_json_record_is_one_line_with_time_level_and_fields(lines: Callable[[], list[str]]) -> None:
    start_logging("info", "json")
    logger.info("a %s\nof two lines", "message", extra={"tokens": 3})
    (line,) = lines()
    record = json.loads(line)
    assert record.pop("time").endswith("+00:00")
    assert record == {"level": "INFO", "logger": "specedge.test", "message": "a message\nof two lines", "tokens": 3}


def test_an_exception_is_part_of_its_record(lines: Callable[[], list[str]]) -> None:
    start_logging("info", "json")
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("failed")
    (line,) = lines()
    assert "ValueError: broken" in json.loads(line)["exception"]


def test_what_is_not_a_terminal_gets_json_by_itself(lines: Callable[[], list[str]]) -> None:
    start_logging("info")
    logger.info("hello")
    assert json.loads(*lines())["message"] == "hello"


def test_text_is_for_people(lines: Callable[[], list[str]]) -> None:
    start_logging("warning", "text")
    logger.info("not severe enough")
    logger.warning("severe", extra={"tokens": 3})
    (line,) = lines()
    assert line.endswith("WARNING specedge.test: severe")


def test_one_of_several_processes_says_which_it_is(lines: Callable[[], list[str]]) -> None:
    start_logging("info", "text", "streams 1")
    logger.info("hello")
    start_logging("info", "json", "streams 1")
    logger.info("hello")
    text, record = lines()
    assert text.endswith("INFO [streams 1] specedge.test: hello")
    assert json.loads(record)["process"] == "streams 1"


async def test_ids_belong_to_their_own_task_and_what_it_begins(lines: Callable[[], list[str]]) -> None:
    start_logging("info", "json")

    async def request(name: str) -> None:
        with log_context(request_id=name):
            await asyncio.sleep(0)

            async def session() -> None:
                with log_context(session_id=f"{name}-0"):
                    await asyncio.sleep(0)
                    logger.info("inside")

            await asyncio.create_task(session())
            logger.info("outside")

    await asyncio.gather(request("a"), request("b"))
    logger.info("after")
    records = [json.loads(line) for line in lines()]
    told = sorted(
        (record["message"], record.get("request_id"), record.get("session_id", "-")) for record in records[:-1]
    )
    assert told == [("inside", "a", "a-0"), ("inside", "b", "b-0"), ("outside", "a", "-"), ("outside", "b", "-")]
    assert "request_id" not in records[-1]


def test_a_record_names_the_trace_it_was_made_in(lines: Callable[[], list[str]]) -> None:
    start_logging("info", "json")
    with TracerProvider(shutdown_on_exit=False).get_tracer("test").start_as_current_span("work") as span:
        logger.info("inside")
    record = json.loads(*lines())
    assert record["trace_id"] == f"{span.get_span_context().trace_id:032x}"
    assert record["span_id"] == f"{span.get_span_context().span_id:016x}"
