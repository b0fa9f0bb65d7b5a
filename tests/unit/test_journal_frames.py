"""A file of the journal: what was written comes back, and nothing else does."""

from pathlib import Path

import pytest
from journal_support import SECRET, write_key

from edge_agent.journal.frames import FRAME_OVERHEAD_BYTES, HEAD_BYTES, FrameWriter, read_frames, salt_of
from edge_agent.journal.key import JournalKey
from specedge.errors import SettingsError

KEY = JournalKey(SECRET)
OTHER_KEY = JournalKey(bytes(32))
TEXTS = [b"first", b"", b"the third " * 20]


def written(name: str = "name", texts: list[bytes] = TEXTS) -> bytes:
    writer = FrameWriter(KEY, name)
    return b"".join(writer.frame(text) for text in texts)


def test_texts_come_back_and_are_not_in_the_file() -> None:
    data = written()
    content = read_frames(data, KEY, "name")
    assert (content.texts, content.num_bytes, content.is_damaged) == (TEXTS, len(data), False)
    assert len(data) == HEAD_BYTES + len(TEXTS) * FRAME_OVERHEAD_BYTES + sum(map(len, TEXTS))
    assert b"first" not in data
    assert written() != data, "two files never look the same"


def test_a_file_is_continued_after_what_is_whole() -> None:
    data = written()[:-3]
    content = read_frames(data, KEY, "name")
    assert content.texts == TEXTS[:2] and not content.is_damaged
    more = FrameWriter(KEY, "name", salt_of(data), 2).frame(b"another third")
    assert read_frames(data[: content.num_bytes] + more, KEY, "name").texts == [*TEXTS[:2], b"another third"]


def test_another_key_or_name_reads_nothing() -> None:
    for key, name in ((OTHER_KEY, "name"), (KEY, "other")):
        content = read_frames(written(), key, name)
        assert content.texts == [] and content.is_damaged


def test_frames_count_in_their_own_place_only() -> None:
    head, *frames = [written(texts=TEXTS[:number]) for number in range(4)]
    assert head == b""
    data = written()
    second = data[len(frames[0]) : len(frames[1])]
    third = data[len(frames[1]) :]
    for swapped in (data[: len(frames[0])] + third + second, data[: len(frames[0])] + third, data + third):
        content = read_frames(swapped, KEY, "name")
        assert content.is_damaged and content.texts == TEXTS[: len(content.texts)]


@pytest.mark.parametrize("num_bytes", [0, 4, HEAD_BYTES - 1, HEAD_BYTES])
def test_a_file_that_was_only_begun_is_empty(num_bytes: int) -> None:
    data = written()[:num_bytes]
    content = read_frames(data, KEY, "name")
    assert content.texts in ((), []) and not content.is_damaged


def test_what_is_no_file_of_the_journal_is_damaged() -> None:
    assert read_frames(b"#!/bin/sh\n" * 20, KEY, "name").is_damaged


def test_names_and_seeds_depend_on_key_and_parts() -> None:
    assert KEY.name_of(b"a", b"bc") == JournalKey(SECRET).name_of(b"a", b"bc")
    names = {KEY.name_of(b"a", b"bc"), KEY.name_of(b"ab", b"c"), KEY.name_of(b"abc"), OTHER_KEY.name_of(b"a", b"bc")}
    assert len(names) == 4
    assert 0 <= KEY.seed_of(b"a") < 2**63 and KEY.seed_of(b"a") != KEY.seed_of(b"b")


def test_a_key_file_holds_32_bytes_in_base64(tmp_path: Path) -> None:
    assert JournalKey.read(write_key(tmp_path)).name_of(b"a") == KEY.name_of(b"a")
    for text in ("", "not base64!", "YWJj"):
        (tmp_path / "wrong").write_text(text)
        with pytest.raises(SettingsError, match=r"does not hold 32 bytes in base64; make one with: openssl") as refusal:
            JournalKey.read(tmp_path / "wrong")
        assert not text or text not in str(refusal.value), "it may be a secret"
    with pytest.raises(SettingsError, match="No such file"):
        JournalKey.read(tmp_path / "none")
