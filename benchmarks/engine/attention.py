"""Tree attention on a GPU: the Triton kernel against the reference, in time, in error and in bits.

    python -m benchmarks.engine attention --out results.json

Each case is one layer's attention of one forward, with the heads of a Qwen3-14B by default. Times are of one call, in a
captured graph of several layers whose keys and values together are larger than the device's cache, as in a model;
`host` is what a call costs in Python without a graph, `prepare` what a forward costs once. `GB/s` counts every key and
value of every context once. Errors are largest differences from float32. Without a CUDA device there is nothing to
measure: that is said, and the exit status is 0.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from specedge.model.attention.interface import AttentionBackend
from specedge.model.attention.sdpa import SdpaBackend
from specedge.model.attention.self_test import Chain, Tree, random_batch
from specedge.model.attention_plan import AttentionPlan, plan_of
from specedge.model.batch import PackedBatch, Segment
from specedge_bench.shape_timing import synchronize

_CACHE_BYTES = {"cpu": 1, "cuda": 256 << 20}  # on CUDA more than any last-level cache; on the CPU only results count
_MAX_LAYERS = 32
_NUM_TIMED = 20
_NUM_HOST_CALLS = 50

Case = tuple[Chain | Tree, ...]

CASES: dict[str, Case] = {
    **{f"1 decoding, prefix {prefix}": (Chain(prefix, 1),) for prefix in (128, 2048, 8192, 32768)},
    **{f"8 decoding, prefix {prefix}": (Chain(prefix, 1),) * 8 for prefix in (128, 512, 2048, 8192)},
    **{f"8 trees of 32, prefix {prefix}": (Tree(prefix, 32),) * 8 for prefix in (128, 512, 2048, 8192)},
    "1 tree of 256, prefix 2048": (Tree(2048, 256),),
    "32 chains of 5, prefix 1024": (Chain(1024, 5),) * 32,
    "ragged": (
        *(Tree(prefix, rows) for prefix, rows in ((128, 32), (700, 7), (8192, 32), (3000, 64), (1, 3), (2048, 24))),
        Chain(4096, 1),
        Chain(1500, 1),
        Chain(1024, 512),
    ),
    "chunk of 512 at 0": (Chain(0, 512),),
    "chunk of 512 at 8192": (Chain(8192, 512),),
    "chunk of 2048 at 2048": (Chain(2048, 2048),),
}


@dataclass(frozen=True, slots=True)
class Heads:
    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class Result:
    """One case; times in microseconds."""

    case: str
    num_rows: int
    num_context: int
    triton_us: float
    sdpa_us: float
    gigabytes_per_s: float
    teraflops: float
    host_us: float
    prepare_us: float
    triton_error: float
    sdpa_error: float
    is_same_alone: bool
    is_same_divided: bool


def call_time_us(calls: Sequence[Callable[[], Any]], device: torch.device) -> float:
    """Median time of one call when all are replayed as one graph; without CUDA, when they follow each other."""
    if device.type == "cuda":
        return _graph_time_us(calls)
    times: list[float] = []
    for _ in range(_NUM_TIMED):
        start = perf_counter()
        for call in calls:
            call()
        times.append((perf_counter() - start) * 1e6 / len(calls))
    return median(times)


def _graph_time_us(calls: Sequence[Callable[[], Any]]) -> float:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times: list[float] = []
    for _ in range(_NUM_TIMED):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return median(times)


def host_time_us(call: Callable[[], Any], device: torch.device) -> float:
    """Median time until a call returns, with an idle device."""
    times = []
    for _ in range(_NUM_HOST_CALLS):
        synchronize(device)
        start = perf_counter()
        call()
        times.append((perf_counter() - start) * 1e6)
    return median(times)


def alone(batch: PackedBatch, plan: AttentionPlan, index: int) -> tuple[slice, AttentionPlan]:
    """(rows, plan) of one segment without the others."""
    rows = slice(int(plan.row_starts[index]), int(plan.row_starts[index + 1]))
    own = np.arange(rows.stop - rows.start)
    return rows, plan_of(PackedBatch(own, batch.positions[rows], batch.slots[rows], (batch.segments[index],), own))


def attended(
    backend: AttentionBackend, plan: AttentionPlan, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    state = backend.prepare(plan, q.device)
    return backend.attend(state, keys, values, q, scale=q.shape[2] ** -0.5, sliding_window=None)


def num_pairs(plan: AttentionPlan) -> int:
    """Pairs of row and context token, each of which takes 4 x head_dim operations per head; chains count half."""
    rows, contexts = np.diff(plan.row_starts).astype(np.int64), np.diff(plan.context_starts).astype(np.int64)
    return int((rows * contexts - np.where(plan.is_chain, rows * (rows - 1) // 2, 0)).sum())


def measure(
    name: str, case: Case, heads: Heads, make: Callable[[int | None], AttentionBackend], device: torch.device
) -> Result:
    """One case.

    Args:
        make: the Triton backend for so many processors; None: those of the device.
    """
    dtype = torch.bfloat16
    num_slots = sum(part.prefix + part.num_rows for part in case) + 1
    batch = random_batch(np.random.default_rng(0), case, num_slots)
    plan = plan_of(batch)
    bytes_per_layer = 2 * num_slots * heads.num_kv_heads * heads.head_dim * dtype.itemsize
    num_layers = min(_MAX_LAYERS, max(2, -(-_CACHE_BYTES[device.type] // bytes_per_layer)))
    torch.manual_seed(0)
    kv = torch.randn((num_layers, 2, num_slots, heads.num_kv_heads, heads.head_dim), device=device, dtype=dtype)
    q = torch.randn((plan.num_rows, heads.num_heads, heads.head_dim), device=device, dtype=dtype)
    scale = heads.head_dim**-0.5
    triton, sdpa = make(None), SdpaBackend()
    times: list[float] = []
    for backend in (triton, sdpa):
        state = backend.prepare(plan, device)
        calls = [
            lambda keys=keys, values=values, backend=backend, state=state: backend.attend(
                state, keys, values, q, scale=scale, sliding_window=None
            )
            for keys, values in kv
        ]
        times.append(call_time_us(calls, device))
    triton_us, sdpa_us = times
    state = triton.prepare(plan, device)
    keys, values = kv[0]
    expected = attended(sdpa, plan, q.float(), keys.float(), values.float())
    together = attended(triton, plan, q, keys, values)
    same_alone = True
    for index in range(plan.num_segments):
        rows, own = alone(batch, plan, index)
        same_alone &= torch.equal(attended(triton, own, q[rows], keys, values), together[rows])
    divided = [attended(make(num), plan, q, keys, values) for num in (1, 10**6)]
    bytes_read = bytes_per_layer * len(plan.context_slots) / num_slots
    return Result(
        case=name,
        num_rows=plan.num_rows,
        num_context=len(plan.context_slots),
        triton_us=triton_us,
        sdpa_us=sdpa_us,
        gigabytes_per_s=bytes_read / triton_us / 1e3,
        teraflops=num_pairs(plan) * 4 * heads.head_dim * heads.num_heads / triton_us / 1e6,
        host_us=host_time_us(lambda: triton.attend(state, keys, values, q, scale=scale, sliding_window=None), device),
        prepare_us=host_time_us(lambda: triton.prepare(plan, device), device),
        triton_error=float((together.float() - expected).abs().max()),
        sdpa_error=float((attended(sdpa, plan, q, keys, values).float() - expected).abs().max()),
        is_same_alone=same_alone,
        is_same_divided=all(torch.equal(other, together) for other in divided),
    )


def changed_by_chunks(heads: Heads, make: Callable[[int | None], AttentionBackend]) -> int:
    """How many of 1,200 rows of a chain have other bits when they are computed in chunks or one by one."""
    device, num_tokens = torch.device("cuda"), 1200
    slots = np.random.default_rng(1).permutation(num_tokens)
    every = np.arange(num_tokens)
    torch.manual_seed(1)
    shape = (num_tokens, heads.num_kv_heads, heads.head_dim)
    keys, values = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(2))
    q = torch.randn((num_tokens, heads.num_heads, heads.head_dim), device=device, dtype=torch.bfloat16)
    backend = make(None)

    def chain(start: int, stop: int) -> torch.Tensor:
        rows = every[start:stop]
        plan = plan_of(PackedBatch(rows, rows, slots[start:stop], (Segment(len(rows), slots[:stop]),), rows))
        return attended(backend, plan, q[start:stop], keys, values)

    whole = chain(0, num_tokens)
    chunks = torch.cat([chain(start, min(start + 177, num_tokens)) for start in range(0, num_tokens, 177)])
    single = torch.cat([chain(token, token + 1) for token in range(num_tokens)])
    differs = (whole != chunks).flatten(1).any(1) | (whole != single).flatten(1).any(1)
    return int(differs.sum())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine attention", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--heads", type=int, nargs=3, default=(40, 8, 128), metavar=("HEADS", "KV_HEADS", "HEAD_DIM"))
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("No CUDA device: the Triton kernel's speed is not measured here. `make test-kernels` checks its results.")
        return 0
    from specedge.model.attention.triton_backend import TritonBackend

    heads = Heads(*options.heads)

    def make(num_processors: int | None) -> AttentionBackend:
        return TritonBackend(torch.device("cuda"), torch.bfloat16, num_processors=num_processors, **asdict(heads))

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16, heads {heads}")
    print(
        f"{'case':28} {'rows':>5} {'triton us':>9} {'sdpa us':>9} {'GB/s':>6} {'TFLOP/s':>7} {'host us':>7} "
        f"{'prepare':>7} {'error':>7} {'sdpa':>7}  bits alone/divided"
    )
    results = []
    for name, case in CASES.items():
        if options.only not in name:
            continue
        result = measure(name, case, heads, make, torch.device("cuda"))
        results.append(result)
        print(
            f"{name:28} {result.num_rows:5} {result.triton_us:9.1f} {result.sdpa_us:9.1f} "
            f"{result.gigabytes_per_s:6.0f} {result.teraflops:7.1f} {result.host_us:7.0f} {result.prepare_us:7.0f} "
            f"{result.triton_error:7.4f} {result.sdpa_error:7.4f}  {result.is_same_alone}/{result.is_same_divided}",
            flush=True,
        )
    num_changed = changed_by_chunks(heads, make)
    print(f"rows of a chain that differ in any bit when computed in chunks or one by one: {num_changed} of 1200")
    if options.out is not None:
        found = {
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "heads": asdict(heads),
            "num_changed_by_chunks": num_changed,
            "results": [asdict(result) for result in results],
        }
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    is_right = all(result.triton_error < 0.03 and result.is_same_alone and result.is_same_divided for result in results)
    return 0 if is_right and not num_changed else 1
