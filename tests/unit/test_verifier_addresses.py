"""Where an edge's verifiers are: lists, names in DNS, files that change."""

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path

import pytest
from pydantic import ValidationError

from edge_agent.settings import EdgeSettings
from edge_agent.verifier_addresses import (
    LOOK_UP_EVERY_S,
    MAX_VERIFIERS,
    DnsAddresses,
    FileAddresses,
    address_source,
    check_addresses,
)
from specedge.errors import SettingsError


@pytest.mark.parametrize(
    "text", ["a:1", "a:1, b:2,[::1]:3", "unix:/run/v.sock", "dns:verifiers.example.org:50051", "file:/etc/verifiers"]
)
def test_ways_to_name_verifiers(text: str) -> None:
    assert check_addresses(text) == text


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("a:1,", "''"),
        ("a", "'a'"),
        ("a:99999", "'a:99999'"),
        ("a:1,b:2,a:1", "a:1 is named twice"),
        (",".join(f"a:{port}" for port in range(1, MAX_VERIFIERS + 2)), f"{MAX_VERIFIERS} are the most"),
        ("dns:somewhere", "dns:NAME:PORT"),
        ("dns:[::1]:5", "dns:NAME:PORT"),
        ("dns:a:1,b:2", "dns:NAME:PORT"),
        ("file:", "file:PATH"),
    ],
)
def test_what_names_no_verifiers_is_refused(text: str, mistake: str) -> None:
    with pytest.raises(ValueError, match=r"is named twice|are the most|is no") as caught:
        check_addresses(text)
    assert mistake in str(caught.value)


@pytest.mark.parametrize("text", ["127.0.0.1:1,gpu.example.org:1", "dns:gpu.example.org:1"])
def test_none_of_several_is_asked_in_plain_text_beyond_this_machine(text: str) -> None:
    with pytest.raises(ValidationError, match=r"gpu.example.org:1 would speak plain text"):
        EdgeSettings(verifier_address=text)
    assert EdgeSettings(verifier_address=text, allow_plaintext=True).verifier_address == text


class Records:
    """A DNS that the test writes."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: Iterable[str] = addresses
        self.error: OSError | None = None
        self.num_lookups = 0
        self.answers = asyncio.Event()
        self.answers.set()

    async def resolve(self, name: str, port: int) -> Iterable[str]:
        assert (name, port) == ("verifiers", 7)
        self.num_lookups += 1
        await self.answers.wait()
        if self.error is not None:
            raise self.error
        return self.addresses


async def test_all_records_of_a_name_are_taken_and_looked_up_again() -> None:
    records = Records("10.0.0.2", "10.0.0.1", "fd00::1", "10.0.0.1")
    source = DnsAddresses("verifiers", 7, records.resolve)
    assert await source.refresh(100.0) == ("10.0.0.1:7", "10.0.0.2:7", "[fd00::1]:7")
    records.addresses = ["10.0.0.3"]
    await source.refresh(100.0 + LOOK_UP_EVERY_S / 2)
    assert records.num_lookups == 1
    assert await source.refresh(100.0 + LOOK_UP_EVERY_S * 1.3) == ("10.0.0.3:7",)
    assert source.tls_name == "verifiers"


async def test_records_that_came_last_stay_while_the_lookup_fails(caplog: pytest.LogCaptureFixture) -> None:
    records = Records("10.0.0.1")
    source = DnsAddresses("verifiers", 7, records.resolve)
    await source.refresh(0.0)
    records.error = OSError(-3, "Temporary failure in name resolution")
    for number in range(1, 4):
        assert await source.refresh(10.0 * number) == ("10.0.0.1:7",)
    records.error, records.addresses = None, []
    assert await source.refresh(50.0) == ("10.0.0.1:7",)
    assert [record.levelno for record in caplog.records].count(logging.WARNING) == 1
    records.addresses = ["10.0.0.9"]
    assert await source.refresh(60.0) == ("10.0.0.9:7",)


async def test_a_slow_dns_holds_nobody_up_twice_and_counts_when_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.verifier_addresses.LOOK_UP_TIMEOUT_S", 0.02)
    records = Records("10.0.0.1")
    records.answers.clear()
    source = DnsAddresses("verifiers", 7, records.resolve)
    for number in range(5):
        assert await source.refresh(10.0 * number) == ()
    assert records.num_lookups == 1, "lookups must not pile up"
    records.answers.set()
    await asyncio.sleep(0)
    assert await source.refresh(50.0) == ("10.0.0.1:7",)


async def test_more_records_than_an_edge_can_take_are_cut_off() -> None:
    source = DnsAddresses("verifiers", 7, Records(*(f"10.0.1.{i}" for i in range(100))).resolve)
    assert len(await source.refresh(0.0)) == MAX_VERIFIERS


def write(path: Path, text: str) -> None:
    other = path.with_suffix(".new")
    other.write_text(text)
    other.replace(path)


async def test_a_file_is_read_again_when_it_changes_and_a_wrong_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "verifiers"
    path.write_text("# ours\n127.0.0.1:1\n\n  [::1]:2  # the new one\n")
    source = address_source(f"file:{path}", allows_plaintext=False)
    assert await source.refresh(0.0) == ("127.0.0.1:1", "[::1]:2")
    for text, mistake in (
        ("127.0.0.1:1\nnowhere\n", "line 2: 'nowhere' is no HOST:PORT"),
        ("gpu.example.org:1\n", "'gpu.example.org:1' is on another machine"),
        ("# nobody\n", "names no verifier"),
        ("127.0.0.1:1\n127.0.0.1:1\n", "127.0.0.1:1 is named twice"),
    ):
        caplog.clear()
        write(path, text)
        for _ in range(3):
            assert await source.refresh(0.0) == ("127.0.0.1:1", "[::1]:2")
        assert len(caplog.records) == 1 and mistake in caplog.text
    path.unlink()
    assert await source.refresh(0.0) == ("127.0.0.1:1", "[::1]:2")
    write(path, "127.0.0.1:3\n")
    assert await source.refresh(0.0) == ("127.0.0.1:3",)


def test_a_file_that_is_missing_or_too_large_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        FileAddresses(tmp_path / "none", allows_plaintext=True)
    path = tmp_path / "large"
    path.write_text("# \n" * 30_000)
    with pytest.raises(SettingsError, match="larger than 65536 bytes"):
        FileAddresses(path, allows_plaintext=True)
