"""The processes that compute one model together by tensor parallelism, this one being one of them.

`torchrun` starts them and says in the environment who is who. Rank 0 leads: it alone decides what is computed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from specedge.errors import EngineDead, ModelLoadError, SettingsError

Int32Array = npt.NDArray[np.int32]

START_TIMEOUT_S = 60.0
"""Seconds in which all ranks must have met."""

_FRAME = 4096  # numbers that a message's first broadcast holds, its length included
_FOREVER = timedelta(days=365)  # work waits for the next step however long; who is gone is `RankPulse`'s business


@dataclass(frozen=True, slots=True)
class RankPlace:
    """Who this process is.

    Attributes:
        rank: among all; 0 leads.
        local_rank: among those of this machine; also the number of its CUDA device.
        size: all ranks.
        num_local: ranks on this machine.
    """

    rank: int
    local_rank: int
    size: int
    num_local: int

    @classmethod
    def of(cls, environment: Mapping[str, str], size: int) -> "RankPlace":
        """The place that torchrun gave this process.

        Args:
            environment: the process's.
            size: as the setting tensor_parallel_size says.

        Raises:
            SettingsError: torchrun did not start this process, or with another number of ranks.
        """
        started = environment.get("WORLD_SIZE")
        if started is None or "RANK" not in environment or "LOCAL_RANK" not in environment:
            raise SettingsError(
                f"tensor_parallel_size is {size}, and this process is none of {size} ranks; start it by "
                f"`torchrun --nproc-per-node {size} -m specedge_cli verifier ...`"
            )
        if int(started) != size:
            raise SettingsError(f"tensor_parallel_size is {size}, and torchrun has started {started} ranks")
        return cls(
            int(environment["RANK"]),
            int(environment["LOCAL_RANK"]),
            size,
            int(environment.get("LOCAL_WORLD_SIZE", started)),
        )


def refuse_several(environment: Mapping[str, str]) -> None:
    """Refuse to be one of several ranks that each believe to be alone.

    Raises:
        SettingsError: torchrun has started more than one.
    """
    if "RANK" in environment and int(environment.get("WORLD_SIZE", "1")) > 1:
        raise SettingsError(
            f"torchrun has started {environment['WORLD_SIZE']} ranks, and tensor_parallel_size is 1; set it to "
            f"{environment['WORLD_SIZE']}, or start one process without torchrun"
        )


class Ranks:
    """The group, once all have met.

    Collectives must be called by all ranks in the same order, and by one thread of each. They raise EngineDead when a
    rank is gone.

    Attributes:
        place: who this process is.
        num_bytes: broadcast so far by `send`.
    """

    def __init__(self, place: RankPlace, device: torch.device) -> None:
        """Meet the others.

        Args:
            device: this rank's; tensors of CUDA devices go by NCCL, all others by gloo.

        Raises:
            ModelLoadError: they were not all there in time.
        """
        self.place = place
        self.num_bytes = 0
        backend = "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
            backend = "cpu:gloo,cuda:nccl"
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=START_TIMEOUT_S))
            self._group: Any = dist.new_group(backend=backend, timeout=_FOREVER)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ModelLoadError(
                f"rank {place.rank}: the {place.size} ranks did not meet within {START_TIMEOUT_S:g} s: {reason}"
            ) from error
        self._frame = torch.empty(_FRAME, dtype=torch.int32)

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.place.rank == 0

    @property
    def size(self) -> int:
        """All ranks."""
        return self.place.size

    def add(self, tensor: torch.Tensor) -> None:
        """Make it the sum of all ranks' tensors, in place."""
        self._reduce(tensor, dist.ReduceOp.SUM)

    def least(self, value: int) -> int:
        """The smallest of all ranks' values."""
        smallest = torch.tensor(value)
        self._reduce(smallest, dist.ReduceOp.MIN)
        return int(smallest)

    def send(self, message: Int32Array) -> None:
        """From rank 0 to all others: one broadcast, and a second one for what its frame does not hold."""
        length, held = len(message), min(len(message), _FRAME - 1)
        frame = self._frame.numpy()
        frame[0], frame[1 : 1 + held] = length, message[:held]
        self._broadcast(self._frame)
        self.num_bytes += self._frame.nbytes
        if held < length:
            rest = torch.from_numpy(np.ascontiguousarray(message[held:]))
            self._broadcast(rest)
            self.num_bytes += rest.nbytes

    def receive(self) -> Int32Array:
        """What rank 0 sends next, however long that takes."""
        self._broadcast(self._frame)
        frame = self._frame.numpy()
        length, held = int(frame[0]), min(int(frame[0]), _FRAME - 1)
        message = np.empty(length, dtype=np.int32)
        message[:held] = frame[1 : 1 + held]
        if held < length:
            rest = torch.empty(length - held, dtype=torch.int32)
            self._broadcast(rest)
            message[held:] = rest.numpy()
        return message

    def leave(self) -> None:
        """Give up the group, in good order."""
        dist.destroy_process_group()

    def _reduce(self, tensor: torch.Tensor, operation: Any) -> None:
        try:
            dist.all_reduce(tensor, operation, group=self._group)
        except RuntimeError as error:
            raise self._lost(error) from error

    def _broadcast(self, tensor: torch.Tensor) -> None:
        try:
            dist.broadcast(tensor, 0, group=self._group)
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: RuntimeError) -> EngineDead:
        return EngineDead(f"rank {self.place.rank} cannot reach all of the {self.size} ranks: {error}")


def rank_device(place: RankPlace, name: str) -> torch.device:
    """This rank's own device for a `device` setting: the CPU, or the CUDA device of its local number.

    Raises:
        SettingsError: the setting names one device for all ranks.
        ModelLoadError: this machine has too few devices.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if ":" in name:
        raise SettingsError(
            f"device {name} names one device, and tensor_parallel_size is {place.size}: each rank takes the device of "
            "its own number; set device to cuda or auto"
        )
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    if count < place.num_local:
        raise ModelLoadError(
            f"device {name}: {place.num_local} ranks of this machine need a CUDA device each, and it has {count}"
        )
    return torch.device("cuda", place.local_rank)
