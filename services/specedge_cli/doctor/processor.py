"""What the CPU can do, and whether the native engine's library can be had."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from specedge.model.native.build import BuildError, find_compiler, library_key, user_cache
from specedge_cli.doctor.check import Finding

_CPUINFO: Final = Path("/proc/cpuinfo")
_SHOWN: Final = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


def check_processor(computes_here: bool) -> Sequence[Finding]:
    """Instruction sets that matter to the CPU engines.

    Args:
        computes_here: whether a model runs on the CPU.
    """
    try:
        text = _CPUINFO.read_text()
    except OSError:
        return [Finding("cpu features", "skipped", f"{_CPUINFO} cannot be read")]
    return [judge_processor(flags_of(text), platform.machine(), computes_here)]


def flags_of(cpuinfo: str) -> frozenset[str]:
    """The flags of the first processor."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def judge_processor(flags: frozenset[str], machine: str, computes_here: bool) -> Finding:
    """Whether the native engine has fast kernels here."""
    shown = [flag for flag in _SHOWN if flag in flags]
    found = f"{machine}: {', '.join(shown) or 'none of ' + ', '.join(_SHOWN)}"
    is_wide = {"avx2", "fma"} <= flags
    values = {"avx2": "avx2" in flags, "avx512": "avx512f" in flags, "bf16": bool({"avx512_bf16", "bf16"} & flags)}
    if computes_here and machine.lower() in ("x86_64", "amd64") and not is_wide:
        change = "run models on a CPU with AVX2 (since 2013) or on a GPU: plain C is several times slower"
        return Finding("cpu features", "warn", found, change, values)
    return Finding("cpu features", "ok", found, values=values)


def check_native_library(engine: str, computes_here: bool) -> Sequence[Finding]:
    """Whether the native library is built, or can be; it is not built here."""
    if not computes_here or engine not in ("auto", "native"):
        return [Finding("native library", "skipped", "no model of these settings runs on the native engine")]
    try:
        compiler = find_compiler()
    except BuildError as error:
        return [judge_native_library(None, str(error), False, engine)]
    path = user_cache() / f"{library_key(compiler)}.so"
    return [judge_native_library(compiler, "", path.is_file(), engine)]


def judge_native_library(compiler: str | None, reason: str, is_built: bool, engine: str) -> Finding:
    """What the first start will do."""
    values = {"compiler": compiler, "is_built": is_built}
    if compiler is None:
        change = "install a C compiler (Debian: apt install gcc); until then engine lean is used, which is slower here"
        return Finding("native library", "fail" if engine == "native" else "warn", reason, change, values)
    found = f"built with {compiler}" if is_built else f"not built yet; {compiler} builds it at the first start"
    return Finding("native library", "ok", found, values=values)
