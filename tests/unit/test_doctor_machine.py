"""What the doctor makes of a machine: each judgement with a good, a poor and a bad one."""

import errno
import socket
import time
from pathlib import Path

import pytest

from specedge_cli.doctor.accelerator import Accelerators, Gpu, judge_accelerator
from specedge_cli.doctor.check import State
from specedge_cli.doctor.clock import check_clock, judge_resolution, judge_synchronised
from specedge_cli.doctor.facts import Facts
from specedge_cli.doctor.machine import check_disk, judge_cores, judge_disk, judge_open_files, judge_python
from specedge_cli.doctor.ports import PortUse, check_ports, judge_port, refusal_of
from specedge_cli.doctor.processor import flags_of, judge_native_library, judge_processor

GIB = 2**30
H100 = Gpu("H100", (9, 0), 70 * GIB, 80 * GIB)
V100 = Gpu("V100", (7, 0), 30 * GIB, 32 * GIB)
P100 = Gpu("P100", (6, 0), 15 * GIB, 16 * GIB)
PORT = PortUse("port", "127.0.0.1", 50051, "grpc")


@pytest.mark.parametrize(("version", "state"), [((3, 11, 0), "ok"), ((3, 14, 1), "ok"), ((3, 10, 9), "fail")])
def test_python(version: tuple[int, int, int], state: State) -> None:
    assert judge_python(version).state == state


@pytest.mark.parametrize(("usable", "threads", "state"), [(8, 4, "ok"), (1, 1, "warn"), (4, 8, "warn")])
def test_cores(usable: int, threads: int, state: State) -> None:
    finding = judge_cores(usable, 8, threads, 1)
    assert finding.state == state
    assert bool(finding.change) == (state != "ok")


@pytest.mark.parametrize(
    ("soft", "hard", "state", "told"),
    [
        (1024, 4096, "ok", "320"),
        (-1, -1, "ok", "no limit"),
        (128, 4096, "warn", "ulimit -n 320"),
        (128, 256, "warn", "hard limit is 256"),
    ],
)
def test_open_files(soft: int, hard: int, state: State, told: str) -> None:
    finding = judge_open_files(soft, hard, 256, "max_concurrent_requests")
    assert finding.state == state and told in finding.found + finding.change


@pytest.mark.parametrize(
    ("free", "is_writable", "state"),
    [(50 * GIB, True, "ok"), (GIB, True, "warn"), (GIB, False, "warn"), (2**20, True, "fail")],
)
def test_disk(free: int, is_writable: bool, state: State) -> None:
    assert judge_disk("disk", Path("/cache"), free, is_writable).state == state


def test_disk_of_folders_that_are_not_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a" / "b"))
    names = {finding.name: finding for finding in check_disk(tmp_path / "steps" / "log")}
    assert {"disk for native library", "disk for models", "disk for step_log"} == names.keys()
    assert str(tmp_path / "a" / "b") in names["disk for native library"].found


@pytest.mark.parametrize(
    ("there", "device", "dtype", "state", "told"),
    [
        (Accelerators((), None), "auto", "auto", "ok", "models run on the CPU"),
        (Accelerators((), None), "cuda", "auto", "fail", "no CUDA device"),
        (Accelerators((), None, "RTX 4090, 550.54"), "auto", "auto", "warn", "install a CUDA build of torch"),
        (Accelerators((), "12.4", "RTX 4090, 450.1"), "cuda", "auto", "fail", "update the driver"),
        (Accelerators((), "12.4", None, "driver mismatch"), "auto", "auto", "warn", "repair the NVIDIA driver"),
        (Accelerators((H100,), "12.4", "H100, 550.54"), "auto", "bfloat16", "ok", "capability 9.0"),
        (Accelerators((H100,), "12.4"), "cpu", "auto", "warn", "stays unused"),
        (Accelerators((H100,), "12.4"), "cuda:1", "auto", "fail", "cuda:1 is not there"),
        (Accelerators((V100,), "12.4"), "cuda", "bfloat16", "warn", "set dtype to float16"),
        (Accelerators((P100,), "12.4"), "cuda", "auto", "warn", "Triton kernels need"),
    ],
)
def test_accelerators(there: Accelerators, device: str, dtype: str, state: State, told: str) -> None:
    finding = judge_accelerator(there, device, dtype)
    assert finding.state == state
    assert told in finding.found + finding.change


def test_processor() -> None:
    flags = flags_of("processor : 0\nflags\t\t: fpu avx2 fma avx512f\n\nprocessor : 1\nflags : fpu\n")
    assert {"avx2", "fma", "avx512f", "fpu"} == flags
    assert judge_processor(flags, "x86_64", True).state == "ok"
    assert judge_processor(frozenset({"sse2"}), "x86_64", True).state == "warn"
    assert judge_processor(frozenset({"sse2"}), "x86_64", False).state == "ok"
    assert judge_processor(flags_of("Features : fp asimd"), "aarch64", True).state == "ok"


def test_native_library() -> None:
    assert judge_native_library("/usr/bin/cc", "", True, "auto").state == "ok"
    assert "first start" in judge_native_library("/usr/bin/cc", "", False, "auto").found
    assert judge_native_library(None, "no C compiler", False, "auto").state == "warn"
    assert judge_native_library(None, "no C compiler", False, "native").state == "fail"


def test_clock() -> None:
    assert judge_resolution(1e-9).state == "ok"
    assert judge_resolution(0.015).state == "warn"
    assert judge_synchronised(True, "timedatectl").state == "ok"
    assert judge_synchronised(False, "the kernel").state == "warn"
    assert judge_synchronised(None, "nobody").state == "skipped"
    steady, _ = check_clock()
    assert steady.values["resolution_s"] == time.get_clock_info("monotonic").resolution


@pytest.mark.parametrize(
    ("reason", "is_own", "state", "told"),
    [
        (None, False, "ok", "is free"),
        (errno.EADDRINUSE, True, "warn", "runs already"),
        (errno.EADDRINUSE, False, "fail", "something else"),
        (errno.EACCES, False, "fail", "from 1024 on"),
        (errno.EADDRNOTAVAIL, False, "fail", "no address of this machine"),
        (errno.EAFNOSUPPORT, False, "fail", "EAFNOSUPPORT"),
    ],
)
def test_ports(reason: int | None, is_own: bool, state: State, told: str) -> None:
    finding = judge_port(PORT, reason, is_own=is_own)
    assert finding.state == state and told in finding.found + finding.change


def test_a_taken_port_and_two_that_are_the_same() -> None:
    facts = Facts()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert refusal_of("127.0.0.1", port) == errno.EADDRINUSE
        uses = [PortUse("port", "127.0.0.1", port, "http"), PortUse("metrics_port", "127.0.0.1", port, "metrics")]
        api, metrics, differ = check_ports(uses, facts)
    assert [finding.state for finding in (api, metrics, differ)] == ["fail", "fail", "fail"]
    assert "metrics_port are both" in differ.found
    (unix,) = check_ports([PortUse("port", "unix:/run/v.sock", 50051, "grpc")], facts)
    (any_port,) = check_ports([PortUse("port", "127.0.0.1", 0, "grpc")], facts)
    assert unix.state == any_port.state == "ok" and not facts.runs_already
