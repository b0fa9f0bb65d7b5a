"""Answers are found again as far as they were recorded, within bounds, and whatever the disk does."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import until
from journal_support import SECRET
from prometheus_client import CollectorRegistry

from edge_agent.committed_answer import Burst, BurstStats
from edge_agent.journal.entries import AnswerHeader
from edge_agent.journal.folder import JournalFolder
from edge_agent.journal.journal import AnswerRecord, Found, Journal
from edge_agent.journal.key import JournalKey
from edge_agent.journal.metrics import JournalMetrics
from specedge.errors import SettingsError
from specedge.wire.messages import TokenLogprob

HEADER = AnswerHeader("cmpl-1", 1234, "/v1/completions", "body", "plan")
KEY = JournalKey(SECRET)
SCORES = (TokenLogprob(-0.1, (7, 8), (-0.1, -2.3000000000000003)), TokenLogprob(float("-inf")))


class Opened:
    """A journal in a folder, with a clock of its own."""

    def __init__(self, path: Path, max_bytes: int = 2**20, max_age_s: float = 100.0, key: JournalKey = KEY) -> None:
        self.now_s = path.stat().st_mtime
        self.registry = CollectorRegistry()
        self.folder = JournalFolder(path, max_bytes, max_age_s, lambda: self.now_s)
        self.journal = Journal(self.folder, key, JournalMetrics(self.registry, lambda: self.folder.num_bytes))

    def sample(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"specedge_edge_journal_{name}", labels)

    async def recorded(self, name: str, *bursts: Burst) -> AnswerRecord:
        record = self.journal.record(name, HEADER, await self.journal.find(name))
        (choice,) = record.choices(1)
        for burst in bursts:
            choice.keep(burst)
        return record

    async def found(self, name: str) -> Found:
        found = await self.journal.find(name)
        assert found is not None
        return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "journal"
    folder.mkdir()
    return folder


@pytest.fixture
def opened(path: Path) -> Iterator[Opened]:
    opened = Opened(path)
    yield opened
    opened.journal.close()


def name_of(number: int) -> str:
    return KEY.name_of(b"%d" % number)


def tokens(*token_ids: int, finish_reason: Any = "", **details: Any) -> Burst:
    return Burst(token_ids, finish_reason, 0, **details)


async def test_an_answer_comes_back_with_all_that_was_told_of_it(path: Path) -> None:
    opened = Opened(path)
    first = tokens(3, 4, stats=BurstStats(num_cached_tokens=16), logprobs=SCORES, prompt_logprobs=SCORES[:1])
    record = opened.journal.record(name_of(1), HEADER, None)
    one, two = record.choices(2)
    one.keep(first)
    two.keep(tokens(9))
    one.keep(tokens(5, finish_reason="length", logprobs=SCORES[:1]))
    two.end()
    record.close()
    opened.journal.close()
    again = Opened(path)
    answer = (await again.found(name_of(1))).answer
    assert answer.header == HEADER and answer.num_tokens == 4
    assert answer.choices[0].burst() == tokens(
        *(3, 4, 5),
        finish_reason="length",
        stats=BurstStats(num_cached_tokens=16),
        logprobs=(*SCORES, SCORES[0]),
        prompt_logprobs=SCORES[:1],
        is_replayed=True,
    )
    assert answer.choices[1].is_ended and not answer.choices[0].is_ended
    again.journal.close()


async def test_an_answer_goes_on_in_its_file_and_one_without_tokens_has_none(path: Path, opened: Opened) -> None:
    (await opened.recorded(name_of(1))).close()
    assert await opened.journal.find(name_of(1)) is None
    (await opened.recorded(name_of(1), tokens(3))).close()
    with (path / f"{name_of(1)}.answer").open("ab") as file:
        file.write(b"\x00\x00\x00\x50torn")
    (await opened.recorded(name_of(1), tokens(4), tokens(5))).close()
    assert (await opened.found(name_of(1))).answer.choices[0].token_ids == [3, 4, 5]
    assert opened.sample("failures_total", reason="damaged") == 0


async def test_what_is_handed_over_is_written_without_being_asked_for(path: Path, opened: Opened) -> None:
    await opened.recorded(name_of(1), tokens(3))
    await until(lambda: (path / f"{name_of(1)}.answer").exists())
    assert opened.sample("bytes") == 4096


async def test_the_oldest_answers_go_when_there_are_too_many_or_too_old_ones(path: Path) -> None:
    opened = Opened(path, max_bytes=3 * 4096, max_age_s=100)
    for number in range(5):
        opened.now_s += 1
        (await opened.recorded(name_of(number), tokens(number))).close()
        await opened.found(name_of(number))
    await until(lambda: opened.sample("removed_answers_total", reason="size") == 2)
    assert [await opened.journal.find(name_of(number)) is None for number in range(5)] == [True] * 2 + [False] * 3
    opened.journal.close()
    again = Opened(path, max_bytes=2**20, max_age_s=100)
    again.now_s += 50
    (await again.recorded(name_of(3), tokens(1))).close()  # written again, it is young again
    await again.found(name_of(3))
    again.now_s += 80
    (await again.recorded(name_of(9), tokens(9))).close()
    await until(lambda: again.sample("removed_answers_total", reason="age") == 2)
    assert [number for number in range(10) if await again.journal.find(name_of(number))] == [3, 9]
    again.journal.close()


async def test_an_answer_larger_than_the_journal_is_recorded_no_further(path: Path) -> None:
    opened = Opened(path, max_bytes=8192)
    record = await opened.recorded(name_of(1), *[tokens(*range(1000)) for _ in range(5)])
    await until(lambda: opened.sample("failures_total", reason="too_large") == 1)
    record.choices(1)[0].keep(tokens(1))
    assert await opened.journal.find(name_of(1)) is None
    assert opened.sample("bytes") == 0
    opened.journal.close()


@pytest.mark.parametrize(("number", "reason"), [(errno.ENOSPC, "disk_full"), (errno.EIO, "io")])
async def test_a_disk_that_fails_ends_the_record_and_keeps_what_is_whole(
    path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    record = await opened.recorded(name_of(1), tokens(3))
    await opened.found(name_of(1))
    real = os.pwrite

    def half(descriptor: int, data: Any, offset: int) -> int:
        real(descriptor, data[: len(data) // 2], offset)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", half)
        record.choices(1)[0].keep(tokens(4))
        await until(lambda: opened.sample("failures_total", reason=reason) == 1)
    record.choices(1)[0].keep(tokens(5))
    record.close()
    assert (await opened.found(name_of(1))).answer.choices[0].token_ids == [3], "nothing may follow a gap"
    (await opened.recorded(name_of(1), tokens(4))).close()
    assert (await opened.found(name_of(1))).answer.choices[0].token_ids == [3, 4]


async def test_a_disk_that_hangs_keeps_nobody_waiting(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.journal.journal._READ_TIMEOUT_S", 0.05)
    monkeypatch.setattr("edge_agent.journal.writer._MAX_PENDING_BYTES", 100)
    with opened.journal._writer._disk:
        assert await opened.journal.find(name_of(1)) is None
        record = opened.journal.record(name_of(1), HEADER, None)
        for _ in range(10):
            record.choices(1)[0].keep(tokens(*range(10)))
        assert opened.sample("failures_total", reason="slow") == 1


async def test_another_key_finds_nothing_and_begins_anew(path: Path) -> None:
    opened = Opened(path)
    (await opened.recorded(name_of(1), tokens(3))).close()
    opened.journal.close()
    other = Opened(path, key=JournalKey(bytes(32)))
    assert await other.journal.find(name_of(1)) is None
    assert other.sample("failures_total", reason="damaged") == 1
    (await other.recorded(name_of(1), tokens(8))).close()
    assert (await other.found(name_of(1))).answer.choices[0].token_ids == [8]
    other.journal.close()


async def test_the_newest_record_of_a_name_is_the_one_that_counts(opened: Opened) -> None:
    older, newer = (opened.journal.record(name_of(1), HEADER, None) for _ in range(2))
    older.choices(1)[0].keep(tokens(1))
    newer.choices(1)[0].keep(tokens(2))
    older.choices(1)[0].keep(tokens(3))
    older.close()
    newer.choices(1)[0].keep(tokens(4))
    assert (await opened.found(name_of(1))).answer.choices[0].token_ids == [2, 4]


def test_a_folder_belongs_to_one_process_and_strangers_stay_alone(path: Path, tmp_path: Path) -> None:
    (path / "notes.txt").write_text("mine")
    (path / "short.answer").write_text("mine")
    folder = JournalFolder(path, 1, 0.0)
    assert folder.trim() == []
    with pytest.raises(SettingsError, match="another process uses it"):
        JournalFolder(path, 1, 0.0)
    folder.close()
    JournalFolder(path, 1, 0.0).close()
    assert {entry.name for entry in path.iterdir()} == {"lock", "notes.txt", "short.answer"}
    with pytest.raises(SettingsError, match=r"journal_dir .*: (File exists|Not a directory)"):
        JournalFolder(path / "notes.txt", 1, 0.0)


async def test_answers_are_for_their_owner_alone_on_disk(path: Path, opened: Opened) -> None:
    await opened.recorded(name_of(1), tokens(3))
    await opened.found(name_of(1))
    assert (path / f"{name_of(1)}.answer").stat().st_mode & 0o777 == 0o600
