"""Whatever becomes of a file of the journal, the tokens found are the first ones that were recorded."""

from hypothesis import given
from hypothesis import strategies as st
from journal_support import SECRET

from edge_agent.committed_answer import Burst
from edge_agent.journal.entries import AnswerHeader, RecordedAnswer, header_line, tokens_line
from edge_agent.journal.frames import FrameWriter, read_frames, salt_of
from edge_agent.journal.key import JournalKey

KEY = JournalKey(SECRET)
HEADER = AnswerHeader("cmpl-1", 1234, "/v1/completions", "body", "plan")
TOKENS = st.lists(st.lists(st.integers(0, 2**31), min_size=1, max_size=6), min_size=1, max_size=8)


def lines_of(bursts: list[list[int]]) -> list[bytes]:
    return [tokens_line(0, Burst(tuple(burst), "", 0)) for burst in bursts]


def tokens_of(data: bytes) -> list[int]:
    answer = RecordedAnswer.parse(read_frames(data, KEY, "name").texts)
    return [] if answer is None or not answer.choices else answer.choices[0].token_ids


def file_of(bursts: list[list[int]]) -> bytes:
    writer = FrameWriter(KEY, "name")
    return b"".join(writer.frame(line) for line in [header_line(HEADER), *lines_of(bursts)])


@given(bursts=TOKENS, data=st.data())
def test_torn_at_any_byte_and_gone_on_with_it_tells_all(bursts: list[list[int]], data: st.DataObject) -> None:
    whole = [token for burst in bursts for token in burst]
    file = file_of(bursts)
    torn = file[: data.draw(st.integers(0, len(file)))]
    found = tokens_of(torn)
    assert found == whole[: len(found)]
    content = read_frames(torn, KEY, "name")
    assert not content.is_damaged
    if not content.texts:
        return
    writer = FrameWriter(KEY, "name", salt_of(torn), len(content.texts))
    rest = writer.frame(tokens_line(0, Burst(tuple(whole[len(found) :]), "", 0)))
    assert tokens_of(torn[: content.num_bytes] + rest) == whole


@given(bursts=TOKENS, data=st.data())
def test_no_changed_byte_changes_a_token(bursts: list[list[int]], data: st.DataObject) -> None:
    file = bytearray(file_of(bursts))
    place = data.draw(st.integers(0, len(file) - 1))
    file[place] ^= data.draw(st.integers(1, 255))
    whole = [token for burst in bursts for token in burst]
    found = tokens_of(bytes(file))
    assert found == whole[: len(found)] and found != whole
