"""The native library is built once, by one of several processes, and its absence is explained."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from native_support import needs_compiler

from specedge.model.native import build, load_native


def compiler(tmp_path: Path, script: str) -> str:
    """A stand-in for a C compiler."""
    path = tmp_path / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@needs_compiler
@pytest.mark.usefixtures("quick_build")
def test_is_built_once_and_found_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert load_native(tmp_path / "cache") is not None
        assert caplog.text.count("built with") == 1
        assert load_native(tmp_path / "cache") is not None
        assert caplog.text.count("built with") == 1
        (kept,) = (tmp_path / "cache").iterdir()
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / kept.name).write_bytes(b"no library")
        assert load_native(tmp_path / "broken") is not None
        assert "built again" in caplog.text and caplog.text.count("built with") == 2


@pytest.mark.slow
@needs_compiler
def test_processes_that_build_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from specedge.model.native import load_native; "
        "sys.exit(load_native(pathlib.Path(sys.argv[1])) is None)"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(150) for process in running] == [0, 0, 0]
    assert [path.suffix for path in tmp_path.iterdir()] == [".so"]


@needs_compiler
@pytest.mark.usefixtures("quick_build")
def test_an_unwritable_cache_costs_a_build_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    assert load_native(tmp_path / "file" / "cache") is not None
    assert "cannot be written" in caplog.text


def test_no_compiler(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_native(tmp_path, compiler="no-such-compiler") is None
    assert "no C compiler found (looked for no-such-compiler)" in caplog.text


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_native(tmp_path / "cache", compiler(tmp_path, "echo this is no source; exit 1")) is None
    assert "this is no source" in caplog.text
    assert not (tmp_path / "cache").exists()


def test_a_compiler_that_never_ends_is_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "BUILD_SECONDS", 0.5)
    assert load_native(tmp_path / "cache", compiler(tmp_path, "exec sleep 60")) is None
    assert "longer than" in caplog.text


@pytest.mark.usefixtures("quick_build")
def test_a_library_that_computes_wrongly_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specedge.model.native.find_fault", lambda library: "logits differ")
    if load_native(tmp_path) is None:
        assert "self-test failed, not used: logits differ" in caplog.text or "no C compiler" in caplog.text
    else:
        pytest.fail("a library that failed its test was used")


def test_the_key_names_source_and_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compiler(tmp_path, "exit 0")
    key = build.library_key(first)
    assert build.library_key(first) == key
    assert build.library_key(sys.executable) != key
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-O2"))
    assert build.library_key(first) != key
