"""Logging to what is full, closed or never read: nobody waits, nothing fails, and what is missing is told."""

import fcntl
import io
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest

from specedge import log_writer
from specedge.log_writer import LogWriter

WAIT_S = 20.0


@contextmanager
def logging_to(stream: TextIO) -> Iterator[tuple[logging.Logger, LogWriter]]:
    logger = logging.Logger("test")
    writer = LogWriter(stream)
    logger.addHandler(writer)
    yield logger, writer


class Disk(io.RawIOBase):
    """Takes nothing while it is full."""

    def __init__(self) -> None:
        self.is_full = True
        self.text = b""

    def writable(self) -> bool:
        return True

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        if self.is_full:
            raise OSError(28, "No space left on device")
        self.text += bytes(data[:7])  # no more at once
        return min(len(data), 7)


def test_lines_are_whole_and_in_order() -> None:
    disk = Disk()
    disk.is_full = False
    with logging_to(io.TextIOWrapper(disk)) as (logger, writer):  # type: ignore[type-var]
        for number in range(500):
            logger.warning("line %d of a log", number)
        writer.flush()
    assert disk.text.decode().splitlines() == [f"line {number} of a log" for number in range(500)]


def test_what_a_full_disk_did_not_take_is_counted() -> None:
    disk = Disk()
    with logging_to(io.TextIOWrapper(disk)) as (logger, writer):  # type: ignore[type-var]
        for _ in range(3):
            logger.warning("lost")
        writer.flush()
        disk.is_full = False
        logger.warning("found")
        writer.flush()
    first, second = disk.text.decode().splitlines()
    assert first == "found" and second.startswith("3 log records before this one are missing")


@pytest.mark.parametrize("kind", ["full", "closed pipe", "closed"])
def test_nothing_fails_where_nothing_can_be_written(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    if kind == "full":
        stream = Path("/dev/full").open("w")  # noqa: SIM115
    else:
        reading, writing = os.pipe()
        os.close(reading)
        stream = os.fdopen(writing, "w")
    if kind == "closed":
        stream.close()
    with logging_to(stream) as (logger, writer):
        for _ in range(3):
            logger.error("hello")
        writer.flush()
        assert writer._num_dropped == 3
    assert capfd.readouterr().err == ""
    stream.close()


def test_nobody_waits_for_a_reader_that_never_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "MAX_WAITING", 10)
    monkeypatch.setattr(log_writer, "_FLUSH_S", 0.1)
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "w") as stream, logging_to(stream) as (logger, writer):
        done = threading.Event()

        def log() -> None:
            for _ in range(100):
                logger.error("x" * 10_000)
            writer.flush()
            done.set()

        threading.Thread(target=log, daemon=True).start()
        assert done.wait(WAIT_S), "a thread that logs is blocked"
        while b"are missing" not in source.readline():
            pass
