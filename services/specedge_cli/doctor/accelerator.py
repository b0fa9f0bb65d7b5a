"""GPU, driver, and what torch can do with them."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from specedge.model.memory import mib
from specedge_cli.doctor.check import Finding

_SMI_TIMEOUT_S: Final = 4.0
_TRITON_FROM: Final = (7, 0)
_BF16_FROM: Final = (8, 0)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device as torch sees it."""

    name: str
    capability: tuple[int, int]
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Accelerators:
    """What there is.

    Attributes:
        gpus: usable by torch.
        cuda_build: the CUDA version that torch was built for; None: it was built without.
        driver: what nvidia-smi says, "name, driver version" a line; None: there is none, or it fails.
        driver_error: why nvidia-smi fails.
    """

    gpus: tuple[Gpu, ...]
    cuda_build: str | None
    driver: str | None = None
    driver_error: str | None = None


def check_accelerator(device: str, dtype: str) -> Sequence[Finding]:
    """Look for GPUs."""
    return [judge_accelerator(find_accelerators(), device, dtype)]


def find_accelerators() -> Accelerators:
    """Ask torch and nvidia-smi."""
    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        capability = torch.cuda.get_device_capability(index)
        gpus.append(Gpu(torch.cuda.get_device_name(index), capability, free, total))
    driver, error = _ask_driver()
    return Accelerators(tuple(gpus), torch.version.cuda, driver, error)


def _ask_driver() -> tuple[str | None, str | None]:
    """(what nvidia-smi lists, why it fails)."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None, None
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    return (done.stdout.strip(), None) if done.returncode == 0 else (None, (done.stdout + done.stderr).strip()[:200])


def judge_accelerator(there: Accelerators, device: str, dtype: str) -> Finding:
    """Whether the wanted device is there and can compute in the wanted number format."""
    name, torch_version = "gpu", f"torch {torch.__version__}"
    if not there.gpus:
        return _without(name, there, device, torch_version)
    index = int(device.partition(":")[2] or 0) if device.startswith("cuda") else 0
    found = "; ".join(
        f"{gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}, {mib(gpu.free_bytes)} of "
        f"{mib(gpu.total_bytes)} free"
        for gpu in there.gpus
    )
    found += f" ({torch_version}, CUDA {there.cuda_build}" + (f", driver: {there.driver})" if there.driver else ")")
    if index >= len(there.gpus):
        return Finding(name, "fail", found, f"device {device} is not there: set device to cuda:0 or auto")
    gpu = there.gpus[index]
    values = {"capability": f"{gpu.capability[0]}.{gpu.capability[1]}", "free_bytes": gpu.free_bytes}
    if device == "cpu":
        return Finding(name, "warn", found, "device is cpu, and this GPU stays unused: set device to auto", values)
    if gpu.capability < _TRITON_FROM:
        change = "Triton kernels need compute capability 7.0: attention will be sdpa, and slower"
        return Finding(name, "warn", found, change, values)
    if dtype == "bfloat16" and gpu.capability < _BF16_FROM:
        change = "bfloat16 is emulated below compute capability 8.0: set dtype to float16"
        return Finding(name, "warn", found, change, values)
    return Finding(name, "ok", found, values=values)


def _without(name: str, there: Accelerators, device: str, torch_version: str) -> Finding:
    if device.startswith("cuda"):
        change = _missing(there) or "set device to auto or cpu, or run on a machine with an NVIDIA GPU"
        return Finding(name, "fail", f"device is {device}, and torch has no CUDA device ({torch_version})", change)
    if device == "auto" and (change := _missing(there)):
        return Finding(name, "warn", f"there may be a GPU that torch cannot use ({torch_version})", change)
    return Finding(name, "ok", f"none: models run on the CPU ({torch_version})", values={"num_gpus": 0})


def _missing(there: Accelerators) -> str:
    """What keeps a GPU that is there from being used."""
    if there.driver_error:
        return f"repair the NVIDIA driver: nvidia-smi says {there.driver_error!r}"
    if there.driver and there.cuda_build is None:
        return f"install a CUDA build of torch: this one has none, and the driver shows {there.driver}"
    if there.driver:
        return f"the driver shows {there.driver}, and torch (CUDA {there.cuda_build}) cannot use it: update the driver"
    return ""
