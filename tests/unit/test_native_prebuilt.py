"""A native library built beforehand serves machines without a compiler, and never executes what a processor lacks."""

import logging
import platform
import re
import subprocess
from pathlib import Path

import pytest
from native_support import needs_compiler

from specedge.model.native import build, prebuild
from specedge.model.native.build import BUILD_SECONDS, find_compiler, load_library, source_key

WIDE_REGISTERS = re.compile(r"%[yz]mm\d|\tv[a-z0-9]+\t.*%xmm\d")
"""Of assembly text: registers of AVX, or the instructions that came with them on narrower ones."""


@needs_compiler
@pytest.mark.usefixtures("quick_build")
def test_is_found_where_there_is_no_compiler(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prebuild.main(tmp_path / "prebuilt") == 0
    (path,) = (tmp_path / "prebuilt").iterdir()
    assert capsys.readouterr().out.strip() == str(path)
    assert path.stat().st_mode & 0o777 == 0o644
    with caplog.at_level(logging.INFO):
        library = load_library(tmp_path / "cache", "no-such-compiler", prebuilt=tmp_path / "prebuilt")
    assert library is not None and library._name == str(path)
    assert "built beforehand" in caplog.text
    assert not (tmp_path / "cache").exists()


def test_the_command_says_why_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert prebuild.main(tmp_path / "prebuilt") == 1
    assert "no C compiler found" in capsys.readouterr().err


def test_of_other_sources_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{source_key()}.so").write_bytes(b"")
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-O2"))
    assert not (tmp_path / f"{source_key()}.so").exists()
    assert load_library(tmp_path / "cache", "no-such-compiler", prebuilt=tmp_path) is None


@needs_compiler
@pytest.mark.usefixtures("quick_build")
def test_that_cannot_be_loaded_is_built_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / f"{source_key()}.so").write_bytes(b"no library")
    assert load_library(tmp_path / "cache", prebuilt=tmp_path) is not None
    assert f"{source_key()}.so cannot be loaded" in caplog.text


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names registers of x86-64")
def test_only_kernels_chosen_at_run_time_need_a_new_processor() -> None:
    needing = set()
    for name, source, flags in build._units():
        command = [find_compiler(), *flags, "-S", str(build.SOURCES / source), "-o", "-"]
        if WIDE_REGISTERS.search(
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=BUILD_SECONDS).stdout
        ):
            needing.add(name)
    assert needing == {"avx2", "avx512"}
