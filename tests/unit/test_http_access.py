"""API keys without a server: limits over time, the key file and its mistakes, the command that makes keys, settings."""

import logging
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.http.api_keys import ApiKeyFile, new_key, read_api_keys, spell_entry
from edge_agent.http.rate_limit import KeyLimits, TokenBucket, spell_duration
from edge_agent.settings import EdgeSettings
from specedge.errors import SettingsError
from specedge.settings_sources import ProcessKind, load_settings
from specedge_cli.main import main

EDGE = ProcessKind("edge", EdgeSettings)
HASH = sha256(b"a key").hexdigest()


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# Limits over time


@given(
    st.integers(1, 300),
    st.lists(st.floats(0, 30), min_size=1, max_size=200),
)
def test_a_bucket_lets_through_its_rate_and_its_size(per_minute: int, gaps_s: list[float]) -> None:
    bucket, now_s, num_taken = TokenBucket(per_minute, 0.0), 0.0, 0
    for gap_s in gaps_s:
        now_s += gap_s
        remaining = bucket.remaining(now_s)
        wait_s = bucket.take(now_s)
        assert (wait_s == 0) == (remaining >= 1)
        num_taken += wait_s == 0
        assert num_taken <= per_minute + now_s * per_minute / 60 + 1e-6
        assert 0 <= bucket.reset_s(now_s) <= 60
        if wait_s:
            now_s += wait_s + 1e-6
            assert bucket.take(now_s) == 0, "the time to wait is honest"
            num_taken += 1


def test_a_bucket_is_empty_after_its_minute_and_full_after_another() -> None:
    bucket = TokenBucket(60, 100.0)
    assert [bucket.take(100.0) for _ in range(60)] == [0.0] * 60
    assert bucket.take(100.0) == pytest.approx(1.0)
    assert bucket.take(100.25) == pytest.approx(0.75)
    assert (bucket.remaining(130.5), bucket.reset_s(130.5)) == (30, pytest.approx(29.5))
    assert (bucket.remaining(500.0), bucket.reset_s(500.0)) == (60, 0.0)
    assert bucket.remaining(1.0) == 60, "a clock that goes back takes nothing away"


def test_another_rate_keeps_what_is_in_the_bucket() -> None:
    limits = KeyLimits()
    for _ in range(9):
        assert limits.admit(10, None, 0.0) is None
    assert limits.admit(100, None, 0.0) is None
    refusal = limits.admit(100, None, 0.0)
    assert refusal is not None and refusal.reason == "rate" and refusal.retry_after_s == pytest.approx(0.6)
    assert limits.admit(None, None, 0.0) is None
    assert limits.headers(0.0) == []


def test_requests_at_a_time() -> None:
    limits = KeyLimits()
    assert limits.admit(2, 1, 0.0) is None
    refusal = limits.admit(2, 1, 0.0)
    assert refusal is not None and refusal.reason == "concurrency" and "1 are the most" in refusal.message
    limits.release(1.0)
    assert limits.admit(2, 1, 0.0) is None, "the refused request took nothing from the rate"
    assert limits.num_running == 1


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [(0, "0s"), (0.0001, "1ms"), (0.12, "120ms"), (1, "1s"), (16.2, "17s"), (59.5, "1m0s"), (360, "6m0s")],
)
def test_durations_are_spelled_as_openai_does(duration_s: float, text: str) -> None:
    assert spell_duration(duration_s) == text


# The key file


def test_a_made_key_is_found_by_its_entry(tmp_path: Path) -> None:
    alice, bob = new_key(), new_key()
    entries = spell_entry("alice", alice, 60, 4) + spell_entry("0123", bob)
    keys = ApiKeyFile(write(tmp_path / "keys.yaml", entries))
    found = keys.find(alice.encode())
    assert found is not None
    assert (found.name, found.requests_per_minute, found.max_concurrent) == ("alice", 60, 4)
    other = keys.find(bob.encode())
    assert other is not None
    assert (other.name, other.requests_per_minute, other.max_concurrent) == ("0123", None, None)
    for wrong in (
        b"",
        alice.encode()[:-1],
        alice.encode() + b" ",
        sha256(alice.encode()).hexdigest().encode(),
        b"\xff",
    ):
        assert keys.find(wrong) is None
    assert alice not in entries and len({new_key() for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must hold a list of entries"),
        ("alice: x", "must hold a list of entries"),
        ("- alice", "entry 1: must have the fields name and sha256"),
        (f"- sha256: {HASH}", "entry 1: name = '' must be 1 to 64 letters"),
        (f"- name: a b\n  sha256: {HASH}", "entry 1: name = 'a b' must be"),
        (f"- name: {'x' * 65}\n  sha256: {HASH}", "must be 1 to 64 letters"),
        (f"- name: [a]\n  sha256: {HASH}", "entry 1: name = ['a'] must be"),
        ("- name: alice", "entry 1 (alice): sha256 must be the 64 hexadecimal digits"),
        (f"- name: alice\n  sha256: {HASH}0", "entry 1 (alice): sha256 must be"),
        (
            f"- name: alice\n  sha256: {HASH}\n  max_concurrent: 0",
            "(alice): max_concurrent = '0' must be an integer from 1",
        ),
        (f"- name: alice\n  sha256: {HASH}\n  max_concurrent: ten", "max_concurrent = 'ten' must be an integer"),
        (f"- name: alice\n  sha256: {HASH}\n  requests_per_minute: 1e3", "requests_per_minute = '1e3' must be"),
        (f"- name: alice\n  sha256: {HASH}\n  rpm: 5", "entry 1 (alice): there is no field 'rpm'"),
        (
            f"- name: alice\n  sha256: {HASH}\n- name: Alice\n  sha256: {'0' * 64}",
            "entry 2 (Alice): entry 1 (alice) has the",
        ),
        (f"- name: alice\n  sha256: {HASH}\n- name: bob\n  sha256: {HASH}", "entry 1 (alice) has the same sha256"),
        (f"- name: alice\n  name: bob\n  sha256: {HASH}", "key 'name' is given twice"),
        ("- name: alice\n sha256: sk-specedge-secret", "line 2: "),
    ],
)
def test_mistakes_name_entry_and_field(text: str, expected: str, tmp_path: Path) -> None:
    path = write(tmp_path / "keys.yaml", text)
    with pytest.raises(SettingsError) as caught:
        read_api_keys(path)
    assert expected in str(caught.value) and str(path) in str(caught.value)
    assert "secret" not in str(caught.value)


def test_every_mistake_is_named_at_once_and_no_key_is_shown(tmp_path: Path) -> None:
    path = write(
        tmp_path / "keys.yaml", "- name: alice\n  sha256: sk-specedge-secret\n- name: bob\n  sha256: 1\n  x: 1\n"
    )
    with pytest.raises(SettingsError) as caught:
        read_api_keys(path)
    assert len(str(caught.value).splitlines()) == 3
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"#" * (2**20 + 1), None])
def test_a_file_that_cannot_be_read(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"keys\.yaml \(API keys\)"):
        ApiKeyFile(path)


async def test_the_file_is_looked_at_once_an_interval_and_a_broken_version_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 0.0
    path = write(tmp_path / "keys.yaml", spell_entry("alice", "first"))
    keys = ApiKeyFile(path, check_interval_s=1.0, clock=lambda: now_s)

    async def is_known_after(seconds: float, key: bytes) -> bool:
        nonlocal now_s
        now_s += seconds
        await keys.refresh()
        return keys.find(key) is not None

    write(path, spell_entry("alice", "first") + spell_entry("bob", "second"))
    assert not await is_known_after(0.5, b"second")
    assert await is_known_after(0.5, b"second")
    with caplog.at_level(logging.ERROR):
        write(path, "- name: alice")
        for _ in range(3):
            assert await is_known_after(1.0, b"second")
        path.unlink()
        for _ in range(3):
            assert await is_known_after(1.0, b"second")
    assert [record.getMessage() for record in caplog.records] == [
        f"the API keys stay as they were: {path} (API keys): entry 1 (alice): "
        "sha256 must be the 64 hexadecimal digits of the key's SHA-256",
        f"the API keys stay as they were: {path} (API keys) cannot be read: No such file or directory",
    ]
    write(path, spell_entry("alice", "first"))
    assert not await is_known_after(1.0, b"second")
    write(tmp_path / "new.yaml", spell_entry("alice", "third"))
    (tmp_path / "new.yaml").replace(path)
    assert await is_known_after(1.0, b"third") and keys.find(b"first") is None
    write(path, "[]")
    assert not await is_known_after(1.0, b"third"), "an empty list revokes every key"


# The command and the settings


def test_the_command_prints_a_key_and_its_entry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "alice", "--requests-per-minute", "60", "--max-concurrent", "4"]) == 0
    printed = capsys.readouterr()
    key = printed.err.strip().rpartition(" ")[2]
    assert key not in printed.out
    found = ApiKeyFile(write(tmp_path / "keys.yaml", printed.out)).find(key.encode())
    assert found is not None and (found.name, found.requests_per_minute, found.max_concurrent) == ("alice", 60, 4)


def test_the_command_refuses_what_the_file_would(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "a b", "--max-concurrent", "0"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "name = 'a b' must be" in printed.err and "max_concurrent = '0' must be" in printed.err


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("off", None),
        ("*", ("*",)),
        ("https://Chat.example.org, http://localhost:3000", ("https://chat.example.org", "http://localhost:3000")),
    ],
)
def test_origins_in_settings(text: str, origins: tuple[str, ...] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(EDGE, [], ["--cors-origins", text])
    assert isinstance(settings, EdgeSettings) and settings.cors_origins == origins
    monkeypatch.setenv("SPECEDGE_CORS_ORIGINS", text)
    settings = load_settings(EDGE, [], [])
    assert isinstance(settings, EdgeSettings) and settings.cors_origins == origins


def test_access_in_a_settings_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "edge.yaml", "api_keys_file: keys.yaml\ncors_origins: [https://a.example, https://b.example]\n"
    )
    settings = load_settings(EDGE, [], ["--config", str(path)])
    assert isinstance(settings, EdgeSettings)
    assert settings.api_keys_file == Path("keys.yaml")
    assert settings.cors_origins == ("https://a.example", "https://b.example")


@pytest.mark.parametrize("text", ["chat.example.org", "https://a.example/", "https://a.example,", "https://*.example"])
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"cors_origins = .* allowed is origins such as"):
        load_settings(EDGE, [], ["--cors-origins", text])
