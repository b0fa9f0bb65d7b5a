"""The machine itself: Python, cores, open files, disk."""

import os
import platform
import resource
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

from specedge import __version__
from specedge.model.memory import mib
from specedge.model.native.build import user_cache
from specedge_cli.cores import available_cores
from specedge_cli.doctor.check import Finding

_MIN_PYTHON: Final = (3, 11)
_LITTLE_DISK: Final = 2 * 2**30
_NO_DISK: Final = 64 * 2**20
_OWN_FILES: Final = 64  # libraries, logs, listeners, models


def check_python() -> Sequence[Finding]:
    """Versions of what computes."""
    return [judge_python(sys.version_info[:3])]


def judge_python(version: tuple[int, int, int]) -> Finding:
    """Whether Python is new enough."""
    spelled = ".".join(map(str, version))
    found = f"{spelled} on {platform.system()} {platform.machine()}, specedge {__version__}"
    if version[:2] < _MIN_PYTHON:
        return Finding("python", "fail", found, "install Python 3.11 or newer", {"python": spelled})
    return Finding("python", "ok", found, values={"python": spelled})


def check_cores(num_threads: int, num_processes: int) -> Sequence[Finding]:
    """Cores, and what model execution takes of them."""
    return [judge_cores(available_cores(), os.cpu_count() or 1, num_threads, num_processes)]


def judge_cores(usable: int, in_machine: int, num_threads: int, num_processes: int) -> Finding:
    """Whether the threads fit the cores.

    Args:
        usable: cores that this process may use.
        in_machine: cores of the machine.
        num_threads: of all processes' model execution together.
        num_processes: which share the cores.
    """
    found = f"{usable} usable" + (f" of {in_machine}" if usable != in_machine else "")
    found += f", {num_threads} for model execution" + (" in both processes" if num_processes > 1 else "")
    values = {"num_cores": usable, "num_threads": num_threads}
    if num_threads > usable:
        change = f"lower num_threads: with more than {usable} every operation waits for the slowest thread"
        return Finding("cores", "warn", found, change, values)
    if usable < 2:
        change = "give it two cores or more: the network shares this one with the model"
        return Finding("cores", "warn", found, change, values)
    return Finding("cores", "ok", found, values=values)


def check_memory() -> Sequence[Finding]:
    """How much main memory there is; what models need of it is said with the models."""
    memory = psutil.virtual_memory()
    found = f"{mib(memory.available)} of {mib(memory.total)} available"
    values = {"available_bytes": int(memory.available), "total_bytes": int(memory.total)}
    return [Finding("memory", "ok", found, values=values)]


def check_open_files(num_connections: int, setting: str) -> Sequence[Finding]:
    """Whether the limit of file descriptors allows the connections that the settings allow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return [judge_open_files(soft, hard, num_connections, setting)]


def judge_open_files(soft: int, hard: int, num_connections: int, setting: str) -> Finding:
    """Every connection takes a descriptor.

    Args:
        soft, hard: the limits; `resource.RLIM_INFINITY` (-1) is none.
        num_connections: most at a time.
        setting: what allows so many.
    """
    needed = num_connections + _OWN_FILES
    values = {"soft_limit": soft, "needed": needed}
    if soft < 0:
        return Finding("open files", "ok", "no limit", values=values)
    if soft >= needed:
        return Finding("open files", "ok", f"up to {soft:,}, about {needed:,} may be needed", values=values)
    within = "" if hard < 0 or hard >= needed else f" (the hard limit is {hard:,}: root must raise that)"
    found = f"up to {soft:,}, and {setting} may need {needed:,}"
    return Finding(
        "open files", "warn", found, f"raise it with `ulimit -n {needed}`{within}, or lower {setting}", values
    )


def check_disk(step_log: Path | None = None) -> Sequence[Finding]:
    """Room where caches and logs are written."""
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    places = {"native library": user_cache(), "models": hub}
    if step_log is not None:
        places["step_log"] = step_log.parent
    findings: dict[Path, Finding] = {}
    for use, folder in places.items():
        there = _existing(folder)
        name = f"disk for {use}"
        findings[folder] = judge_disk(name, folder, shutil.disk_usage(there).free, os.access(there, os.W_OK))
    return list(findings.values())


def judge_disk(name: str, folder: Path, free: int, is_writable: bool) -> Finding:
    """Whether something can be written there."""
    values = {"free_bytes": free}
    if not is_writable:
        change = f"make {folder} writable, or point XDG_CACHE_HOME or HF_HOME elsewhere"
        return Finding(name, "warn", f"{folder} cannot be written", change, values)
    found = f"{mib(free)} free at {folder}"
    if free < _NO_DISK:
        return Finding(name, "fail", found, "make room", values)
    if free < _LITTLE_DISK:
        return Finding(name, "warn", found, "make room before a model is downloaded", values)
    return Finding(name, "ok", found, values=values)


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
