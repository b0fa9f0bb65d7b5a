"""`specedge verifier drain` and the socket it speaks to; the test of a rolling restart uses it on real processes."""

import asyncio
import contextlib
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from specedge_cli import drain as command
from specedge_cli.main import main
from specedge_verifier.drain_socket import DrainNews, drain_path, drain_socket

HOST, PORT = "127.0.0.1", 50123


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # Not tmp_path: the path of a Unix socket has at most 107 characters.
    with tempfile.TemporaryDirectory() as made:
        monkeypatch.setattr(tempfile, "tempdir", made)
        yield Path(made)


class Asked:
    """A verifier as its socket sees it."""

    def __init__(self) -> None:
        self.num_times = 0

    def drain(self) -> None:
        self.num_times += 1

    def news(self) -> DrainNews:
        return DrainNews(4242, 7, 0.0)


def listening(asked: Asked, port: int = PORT) -> contextlib.AbstractAsyncContextManager[None]:
    return drain_socket(HOST, port, asked.drain, asked.news)


async def test_it_asks_shows_how_many_sessions_are_left_and_says_who_has_not_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # This very process is the one whose end it waits for.
    monkeypatch.setattr(command, "EXIT_TIMEOUT_S", 0.5)
    asked = Asked()
    async with listening(asked), listening(Asked(), PORT + 1):
        assert await asyncio.to_thread(main, ["verifier", "drain", "--port", str(PORT)]) == 1
    assert asked.num_times == 1
    shown = capsys.readouterr()
    assert "process 4242 drains: 7 sessions" in shown.out
    assert "process 4242 has not ended 0.5 s after its grace of 0 s" in shown.err


async def test_without_a_verifier_it_fails_and_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert await asyncio.to_thread(main, ["verifier", "drain", "--port", str(PORT)]) == 1
    assert f"listens at {HOST}, port {PORT}; one that loads" in capsys.readouterr().err
    asked = Asked()
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(drain_path(HOST, PORT)))
    async with listening(asked, PORT + 1), listening(asked, PORT + 2):
        assert await asyncio.to_thread(main, ["verifier", "drain", "--port", str(PORT)]) == 1
    assert f"port {PORT}; others listen at port {PORT + 1}, {PORT + 2};" in capsys.readouterr().err
    assert asked.num_times == 0


def test_a_wrong_port_is_a_wrong_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verifier", "drain", "--port", "70000"]) == 2
    assert "port" in capsys.readouterr().err


async def test_only_its_own_user_may_reach_the_socket_and_it_is_gone_afterwards() -> None:
    path = drain_path(HOST, PORT)
    async with listening(Asked()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.exists()
    async with drain_socket("unix:/run/a.sock", 0, Asked().drain, Asked().news):
        assert drain_path("unix:/run/a.sock", 0).exists() and not drain_path("unix:/run/b.sock", 0).exists()


def of_others(folder: Path) -> None:
    drain_path(HOST, PORT).parent.chmod(0o755)


def a_link(folder: Path) -> None:
    own = drain_path(HOST, PORT).parent
    own.rmdir()
    own.symlink_to(folder)


def a_file(folder: Path) -> None:
    own = drain_path(HOST, PORT).parent
    own.rmdir()
    own.touch()


@pytest.mark.parametrize("spoil", [of_others, a_link, a_file])
async def test_a_folder_that_somebody_else_could_have_made_is_not_used(
    folder: Path,
    spoil: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(folder)
    async with listening(Asked()):
        assert "will not find this verifier" in caplog.text
        assert await asyncio.to_thread(main, ["verifier", "drain", "--port", str(PORT)]) == 1
    assert str(folder) in capsys.readouterr().err


@pytest.mark.parametrize("words", [b"", b"stop\n", b"d" * 100_000])
async def test_other_words_are_no_request(words: bytes) -> None:
    asked = Asked()
    async with listening(asked):
        reader, writer = await asyncio.open_unix_connection(drain_path(HOST, PORT))
        writer.write(words)
        if writer.can_write_eof():
            writer.write_eof()
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
    assert asked.num_times == 0
