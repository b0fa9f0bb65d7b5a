"""The clock: certificates, logs and traces of two machines are compared by it."""

import ctypes
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final

from specedge_cli.doctor.check import Finding

_TIMEOUT_S: Final = 3.0
_COARSE_S: Final = 1e-4
_TIMEX_BYTES: Final = 512  # more than struct timex anywhere
_UNSYNCHRONISED: Final = 5


def check_clock() -> Sequence[Finding]:
    """Resolution of steady time, and whether the time of day follows a time server."""
    return [
        judge_resolution(time.get_clock_info("monotonic").resolution),
        judge_synchronised(*is_synchronised()),
    ]


def judge_resolution(resolution_s: float) -> Finding:
    """Steps take milliseconds; the clock must tell them apart."""
    values = {"resolution_s": resolution_s}
    found = f"steady time in steps of {1e6 * resolution_s:g} µs"
    if resolution_s > _COARSE_S:
        return Finding("clock", "warn", found, "choose a better clock source: step times are learnt from it", values)
    return Finding("clock", "ok", found, values=values)


def is_synchronised() -> tuple[bool | None, str]:
    """(whether the time of day follows a time server, who says so); None where nobody knows."""
    program = shutil.which("timedatectl")
    if program is not None:
        command = [program, "show", "--property=NTPSynchronized", "--value"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            done = None
        if done is not None and done.returncode == 0 and done.stdout.strip() in ("yes", "no"):
            return done.stdout.strip() == "yes", "timedatectl"
    if sys.platform != "linux":
        return None, "nobody"
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)
    state = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
    return (None, "nobody") if state < 0 else (state != _UNSYNCHRONISED, "the kernel")


def judge_synchronised(is_followed: bool | None, source: str) -> Finding:
    """An unsynchronised clock makes good certificates expired or not yet valid, one day."""
    if is_followed is None:
        return Finding("time of day", "skipped", "neither timedatectl nor the kernel says whether it is synchronised")
    values = {"is_synchronised": is_followed}
    if is_followed:
        return Finding("time of day", "ok", f"synchronised, says {source}", values=values)
    change = "turn on a time service (systemd-timesyncd, chrony): certificates and logs go by this clock"
    return Finding("time of day", "warn", f"not synchronised, says {source}", change, values)
