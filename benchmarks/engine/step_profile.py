"""Where the time of one step goes: its kernels, and the gaps in which the device had nothing to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.profiler import ProfilerActivity, profile

from specedge_bench.shape_timing import Step, synchronize

NUM_LINES = 12


@dataclass(frozen=True, slots=True)
class Span:
    """One kernel (on the CPU: operator) of a profiled step; microseconds."""

    name: str
    start_us: float
    end_us: float


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the time of one step goes.

    Attributes:
        kernels: name, number of launches, microseconds; the largest first.
        gaps: microseconds in which nothing ran, after which kernel and before which; the largest first.
    """

    step: str
    busy_us: float
    kernels: list[tuple[str, int, float]]
    gaps: list[tuple[float, str, str]]


def profile_of(name: str, step: Step, device: torch.device) -> Profile:
    """One step's kernels (on the CPU: operators), and when none of them ran."""
    is_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if is_cuda else [ProfilerActivity.CPU]
    for _ in range(2):  # the first one starts the profiler, which takes time of its own
        with profile(activities=activities) as profiler:
            step()
            synchronize(device)
    wanted = "CUDA" if is_cuda else "CPU"
    spans = [
        Span(event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type.name == wanted
    ]
    return summarise(name, spans)


def summarise(name: str, spans: Sequence[Span]) -> Profile:
    """Sums and gaps. Spans within others count for themselves in `kernels`, and once in `busy_us`."""
    totals: dict[str, tuple[int, float]] = {}
    for span in spans:
        count, total = totals.get(span.name, (0, 0.0))
        totals[span.name] = count + 1, total + span.end_us - span.start_us
    kernels = sorted(((name, *found) for name, found in totals.items()), key=lambda row: row[2], reverse=True)
    merged: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start_us, -span.end_us)):
        if merged and span.start_us <= merged[-1].end_us:
            if span.end_us > merged[-1].end_us:
                merged[-1] = Span(span.name, merged[-1].start_us, span.end_us)
        else:
            merged.append(span)
    gaps = sorted(((after.start_us - before.end_us, before.name, after.name) for before, after in pairwise(merged)))
    busy_us = sum(span.end_us - span.start_us for span in merged)
    return Profile(name, busy_us, kernels[:NUM_LINES], gaps[: -NUM_LINES - 1 : -1])
