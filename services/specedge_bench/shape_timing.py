"""Steps of random models that can be timed: eager through `ModelRunner`, and as one CUDA graph."""

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from specedge.model.batch import PackedBatch, Segment
from specedge.model.runner import ModelRunner, TransformersRunner
from specedge.model.transformers_attention import ATTENTION_NAME
from specedge_bench.model_shape import ModelShape, ShapeError
from specedge_bench.shape_models import LeanDecoder, StaticBatch, find_fuse

Step = Callable[[], object]
Points = list[tuple[int, int, int]]

NUM_WARM_UP_STEPS = 2
CPU_KV_BYTES = 2 * 2**30
CUDA_FREE_SHARE = 0.75  # of the memory the weights leave; the rest is for activations and the graph's pool
ATTENTION_WORDS = ("flash", "fmha", "attention", "softmax")
GEMM_WORDS = ("gemm", "nvjet", "cutlass", "gemv", "cublas", "splitk", "aten::mm", "aten::addmm", "aten::bmm")


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """Median of up to `num_steps` steps after warm-up; fewer, but three or more, once `max_seconds` are over."""

    num_steps: int
    max_seconds: float

    def median_s(self, step: Step, device: torch.device) -> float:
        """Seconds from the call of a step until its result is there."""
        for _ in range(NUM_WARM_UP_STEPS):
            step()
        synchronize(device)
        taken: list[float] = []
        begin = time.perf_counter()
        while len(taken) < self.num_steps and (len(taken) < 3 or time.perf_counter() - begin < self.max_seconds):
            started = time.perf_counter()
            step()
            synchronize(device)
            taken.append(time.perf_counter() - started)
        return median(taken)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def binary_tree(num_nodes: int) -> tuple[list[int], np.ndarray[Any, np.dtype[np.bool_]]]:
    """Depths, and which nodes each node sees, of a tree in which every node has two children."""
    sees = np.eye(num_nodes, dtype=np.bool_)
    depths = [0] * num_nodes
    for node in range(1, num_nodes):
        parent = (node - 1) // 2
        sees[node] |= sees[parent]
        depths[node] = depths[parent] + 1
    return depths, sees


class EagerSteps:
    """Steps of the product's own forward: `ModelRunner` over paged KV."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner

    @contextmanager
    def prepare(self, num_sessions: int, num_nodes: int, prefix: int) -> Iterator[Step]:
        """A step of `num_sessions` sessions with `num_nodes` rows each."""
        batch = self.batch(num_sessions, num_nodes, prefix)
        yield lambda: self._runner.forward(batch)

    def batch(self, num_sessions: int, num_nodes: int, prefix: int, *, is_chain: bool = False) -> PackedBatch:
        """A tree for each session, all logits wanted; with `is_chain` chunks of prompts, only the last ones' wanted."""
        num_rows = num_sessions * num_nodes
        depths, sees = (list(range(num_nodes)), None) if is_chain else binary_tree(num_nodes)
        own = np.arange(num_rows, dtype=np.int64)
        num_shared = self._runner.num_slots - num_rows
        segments = []
        for session in range(num_sessions):
            # Where the cache is too small for all prefixes, sessions share slots: the same bytes are read.
            context = num_rows + (session * prefix + np.arange(prefix, dtype=np.int64)) % num_shared
            rows = own[session * num_nodes : (session + 1) * num_nodes]
            segments.append(Segment(num_nodes, np.concatenate((context, rows)), sees if num_nodes > 1 else None))
        positions = np.tile(prefix + np.array(depths, dtype=np.int64), num_sessions)
        wanted = own[num_nodes - 1 :: num_nodes] if is_chain else own
        return PackedBatch(np.zeros_like(own), positions, own, tuple(segments), wanted)


@contextmanager
def eager_steps(
    shape: ModelShape, config: dict[str, Any], device: torch.device, dtype: torch.dtype, points: Points
) -> Iterator[EagerSteps]:
    """A model of transformers with random weights behind `ModelRunner`, with KV for the largest point that fits."""
    fields = {key: value for key, value in config.items() if key != "model_type"}
    try:
        hf_config = AutoConfig.for_model(shape.model_type, **fields)
        with torch.device(device):
            model = cast(Any, AutoModelForCausalLM).from_config(
                hf_config, dtype=dtype, attn_implementation=ATTENTION_NAME
            )
    except (ImportError, KeyError, TypeError, ValueError) as error:
        raise ShapeError(f"{shape.name}: transformers cannot build {shape.model_type or 'it'}: {error}") from error
    model = model.to(device).eval().requires_grad_(False)
    yield EagerSteps(TransformersRunner(model, slots_for(points, shape, device, dtype)))


def slots_for(points: Points, shape: ModelShape, device: torch.device, dtype: torch.dtype) -> int:
    """KV slots for the largest point; where memory is short, as few as the longest one of its sessions takes."""
    wanted = max(num_sessions * (prefix + num_nodes) for num_sessions, num_nodes, prefix in points)
    bytes_per_slot = shape.kv_bytes_per_token(str(dtype).removeprefix("torch."))
    longest = max(num_nodes * num_sessions for num_sessions, num_nodes, _ in points) + max(point[2] for point in points)
    return max(min(wanted, int(kv_budget(device) // bytes_per_slot)), longest)


class GraphSteps:
    """Steps of the lean forward, each captured as one CUDA graph; on the CPU, which has none, called as they are."""

    def __init__(self, shape: ModelShape, decoder: LeanDecoder, kv: torch.Tensor) -> None:
        self._shape, self._decoder, self._kv = shape, decoder, kv

    @contextmanager
    def prepare(self, num_sessions: int, num_nodes: int, prefix: int) -> Iterator[Step]:
        """A step of `num_sessions` sessions with `num_nodes` rows each."""
        shape = self._shape
        layer = (2, num_sessions, prefix + num_nodes, shape.num_kv_heads, shape.head_dim)
        num_layers = min(self._kv.numel() // math.prod(layer), shape.num_layers)
        if num_layers == 0:
            raise torch.OutOfMemoryError(f"keys and values of one layer, {layer}, do not fit")
        kv = self._kv[: num_layers * math.prod(layer)].view(num_layers, *layer)
        depths, sees = binary_tree(num_nodes)
        batch = StaticBatch.build(shape, num_sessions, depths, torch.from_numpy(sees), kv)
        if kv.device.type != "cuda":
            yield lambda: self._decoder.forward(batch)
            return
        graph = self._capture(batch)
        try:
            yield graph.replay
        finally:
            graph.reset()

    def _capture(self, batch: StaticBatch) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARM_UP_STEPS):
                self._decoder.forward(batch)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._decoder.forward(batch)
        return graph


@contextmanager
def graph_steps(
    shape: ModelShape, _config: dict[str, Any], device: torch.device, dtype: torch.dtype, points: Points
) -> Iterator[GraphSteps]:
    """The lean decoder with random weights and KV for the largest point, or as many of its layers as fit."""
    decoder = LeanDecoder.random(shape, device, dtype, find_fuse(device))
    wanted = max(num_sessions * (prefix + num_nodes) for num_sessions, num_nodes, prefix in points)
    num_bytes = wanted * shape.kv_bytes_per_token(str(dtype).removeprefix("torch."))
    num_values = int(min(num_bytes, kv_budget(device)) // dtype.itemsize)
    yield GraphSteps(shape, decoder, torch.empty(num_values, device=device, dtype=dtype).normal_())


def kv_budget(device: torch.device) -> float:
    """Bytes to spend on keys and values."""
    if device.type != "cuda":
        return CPU_KV_BYTES
    gc.collect()
    torch.cuda.empty_cache()
    return CUDA_FREE_SHARE * torch.cuda.mem_get_info(device)[0]


def kernel_shares(step: Step, device: torch.device) -> dict[str, float]:
    """Shares of GEMM, attention and the rest in the time of one step, by the names of kernels (CUDA) or operators."""
    is_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]) as profiler:
        step()
        synchronize(device)
    taken = {"gemm": 0.0, "attention": 0.0, "rest": 0.0}
    for event in profiler.key_averages():
        # On CUDA the calls that launched the kernels are listed too, with the kernels' time once more.
        if event.device_type.name == ("CUDA" if is_cuda else "CPU"):
            spent = event.self_device_time_total if is_cuda else event.self_cpu_time_total
            taken[kernel_kind(event.key)] += spent
    total = sum(taken.values())
    return {kind: round(spent / total, 4) if total else 0.0 for kind, spent in taken.items()}


def kernel_kind(name: str) -> str:
    """gemm, attention or rest. Attention comes first: its kernels are built of the same library's products."""
    lowered = name.lower()
    if any(word in lowered for word in ATTENTION_WORDS):
        return "attention"
    return "gemm" if any(word in lowered for word in GEMM_WORDS) else "rest"
