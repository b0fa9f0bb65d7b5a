"""How many CPU cores this process may use, and how many of them model execution takes."""

import os
from pathlib import Path

CPU_QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")


def available_cores(quota_file: Path = CPU_QUOTA_FILE) -> int:
    """Cores of this machine that this process may run on, within its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores


def model_threads(cores: int) -> int:
    """Half of the cores: the network threads, and a second process beside this one, need the other half.

    More threads than free cores are far slower than one thread, since all wait for the slowest in every operation.
    """
    return max(1, cores // 2)
