"""What a run was measured on, in words that mean something elsewhere."""

import platform
import re
from importlib.metadata import version
from pathlib import Path

from specedge import __version__
from specedge_cli.cores import available_cores

_CPU_INFO = Path("/proc/cpuinfo")


def this_machine() -> dict[str, str]:
    """Processor, cores that may be used, GPUs, and the versions that matter."""
    import torch

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu(),
        "cores": str(available_cores()),
        "gpu": ", ".join(gpus) or "none",
        "system": system_version(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "specedge": __version__,
    }


def without_place(text: str) -> str:
    """The own name of a file or folder of this machine; anything else as it is."""
    path = Path(text)
    return path.name if path.parent != Path() and path.exists() else text


def system_version() -> str:
    """The system's name and version number alone: what a kernel adds to it can name a provider's build."""
    number = re.match(r"\d+(\.\d+)?", platform.release())
    return f"{platform.system()} {number[0]}" if number else platform.system()


def _cpu() -> str:
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
