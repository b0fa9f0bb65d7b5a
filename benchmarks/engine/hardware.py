"""What the device can do, measured in the same run, and the least time that a forward can take on it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.engine.points import Point
from benchmarks.engine.timing import Clock, seconds_of
from specedge_bench.model_shape import ModelShape
from specedge_bench.shape_timing import synchronize

_NUM_TIMED = 12
_LEAST_BYTES = 1 << 20
_MOST_BYTES = {"cpu": 512 << 20, "cuda": 4 << 30}
_GEMM_SIZES = {"cpu": (512, 1024), "cuda": (4096, 8192)}


@dataclass(frozen=True, slots=True)
class Hardware:
    """Measured rates.

    Attributes:
        read_bytes_per_s: of reading `num_bytes` again and again, from the cache that holds that much, or from memory.
        flops: of the best large matrix product in `dtype`, multiplications and additions.
    """

    num_bytes: int
    read_bytes_per_s: float
    dtype: str
    flops: float


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a forward's bound depends on beside its rows: the model, and how many bytes its numbers have in memory."""

    shape: ModelShape
    weight_bytes: int
    kv_bytes: int

    @property
    def all_weight_bytes(self) -> int:
        """Read by every forward."""
        return self.shape.num_matmul_parameters * self.weight_bytes

    def kv_read(self, point: Point) -> int:
        """Bytes of keys and values of all sessions' contexts."""
        per_token = 2 * self.shape.num_layers * self.shape.num_kv_heads * self.shape.head_dim * self.kv_bytes
        return point.num_context * per_token

    def matmul_flops(self, point: Point) -> float:
        """2 P N, with the head for the wanted rows only."""
        head = self.shape.head_parameters
        return 2.0 * ((self.shape.num_matmul_parameters - head) * point.num_rows + head * point.num_wanted)

    def attention_flops(self, point: Point) -> float:
        """Scores and weighted values."""
        return 4.0 * self.shape.num_layers * self.shape.num_heads * self.shape.head_dim * point.num_pairs

    def products_s(self, point: Point, bytes_per_s: float, flops: float) -> float:
        """max(weights / bandwidth, 2 P N / rate)."""
        return max(self.all_weight_bytes / bytes_per_s, self.matmul_flops(point) / flops)

    def bound_s(self, point: Point, bytes_per_s: float, flops: float) -> float:
        """The products, and for attention max(KV / bandwidth, arithmetic / rate)."""
        attention_s = max(self.kv_read(point) / bytes_per_s, self.attention_flops(point) / flops)
        return self.products_s(point, bytes_per_s, flops) + attention_s


def measure_hardware(
    num_bytes: int, dtype: torch.dtype, device: torch.device, clock: Clock = time.perf_counter
) -> Hardware:
    """Read a buffer of that size (within what the device has room for), and multiply large matrices."""
    num_bytes = max(_LEAST_BYTES, min(num_bytes, _MOST_BYTES[device.type]))
    return Hardware(
        num_bytes=num_bytes,
        read_bytes_per_s=_read_rate(num_bytes, device, clock),
        dtype=str(dtype).removeprefix("torch."),
        flops=_flops(dtype, device, clock),
    )


def _read_rate(num_bytes: int, device: torch.device, clock: Clock) -> float:
    """The best of three simple kernels; a copy counts what it reads and what it writes."""
    values = torch.rand(num_bytes // 4, device=device)
    half = len(values) // 2
    source, target = values[:half], values[half : 2 * half]
    kernels: tuple[Callable[[], object], ...] = (values.sum, values.amax, lambda: target.copy_(source))
    return max(values.nbytes / _seconds(kernel, device, clock) for kernel in kernels)


def _flops(dtype: torch.dtype, device: torch.device, clock: Clock) -> float:
    rates = []
    for size in _GEMM_SIZES[device.type]:
        left, right = (torch.randn((size, size), device=device, dtype=dtype) for _ in range(2))
        product = torch.empty((size, size), device=device, dtype=dtype)
        rates.append(2 * size**3 / _seconds(partial(torch.mm, left, right, out=product), device, clock))
    return max(rates)


def _seconds(call: Callable[[], object], device: torch.device, clock: Clock) -> float:
    """The shortest time of a call: what the device can do, not what others left of it."""
    synchronize(device)
    return min(seconds_of(call, device, clock) for _ in range(_NUM_TIMED))
