"""The flags of `specedge bench`: what is measured, under which load and network, with which models."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from specedge.errors import SettingsError
from specedge_bench.arrivals import Load, parse_load
from specedge_bench.client import AskSettings
from specedge_bench.devices import DEVICES
from specedge_bench.flags import DIRECT, bench_parser
from specedge_bench.machine import without_place
from specedge_bench.network.profiles import NetworkProfile, network_profile
from specedge_bench.pace.pace import Pace, parse_pace
from specedge_bench.prompts.dataset import Selection
from specedge_bench.summary import Slo
from specedge_bench.systems import SystemVariant, parse_system

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """A run as it was asked for.

    Args:
        systems, loads, networks: every combination is a cell; a network of None is the one that is there.
        num_edges: edge agents of a system; users are spread over them.
        num_repetitions: of each cell.
        num_requests: of a cell and repetition; None is every selected prompt.
        warm_up_tokens: of the answers each edge gives before anything is measured.
        cache_prefill: the prefix cache holds every prompt of a cell before it begins.
        ready_timeout_s: for loading all models of a system.
        given: the flags for the report.
        verifier: address of a verifier that runs already.
        shared, verifier, edge flags: handed on to the services.
    """

    systems: tuple[SystemVariant, ...]
    loads: tuple[Load, ...]
    networks: tuple[NetworkProfile | None, ...]
    num_edges: int
    num_repetitions: int
    num_requests: int | None
    warm_up_tokens: int
    ask: AskSettings
    seed: int
    cache_prefill: bool
    dataset: str
    dataset_path: str | None
    dataset_id: str | None
    selection: Selection
    target_model: str
    draft_model: str
    shared_flags: tuple[str, ...]
    verifier_flags: tuple[str, ...]
    edge_flags: tuple[str, ...]
    verifier: str | None
    verifier_metrics: str | None
    pace: Pace | None
    network_method: str
    slo: Slo
    prices: dict[str, float]
    verifier_gpu: str
    edge_gpu: str
    out: Path
    ready_timeout_s: float
    given: dict[str, object]

    @property
    def network_names(self) -> tuple[str, ...]:
        """Their part in cells' names."""
        return tuple(DIRECT if network is None else network.name for network in self.networks)


def parse_options(arguments: Sequence[str]) -> Options:
    """Reads and checks every flag; loads, networks and systems are resolved, traces are read.

    Raises:
        SettingsError: a value is not allowed.
        SpecEdgeError: a system, load, network or selection is unknown or wrong.
    """
    flags = bench_parser().parse_args(arguments)
    prices = {name: device.price_per_s for name, device in DEVICES.items() if device.price_per_s is not None}
    prices |= dict(_price(text) for text in flags.price)
    for flag, name in (("--verifier-gpu", flags.verifier_gpu), ("--edge-gpu", flags.edge_gpu)):
        if name not in prices:
            known = ", ".join(sorted(prices))
            raise SettingsError(f"{flag} {name!r} has no price; known are {known}, and --price NAME=DOLLARS_PER_S")
    shared = ["--target-model", flags.target_model]
    for flag in ("device", "dtype", "num_threads"):
        if (value := getattr(flags, flag)) is not None:
            shared += [f"--{flag.replace('_', '-')}", value]
    loads = _each(flags.loads, parse_load, "load")
    return Options(
        systems=_each(flags.systems, parse_system, "system"),
        loads=loads,
        networks=_each(flags.networks, lambda name: None if name == DIRECT else network_profile(name), "network"),
        num_edges=flags.edges,
        num_repetitions=flags.repetitions,
        num_requests=flags.num_requests,
        warm_up_tokens=flags.warm_up_tokens,
        ask=AskSettings(
            max_new_tokens=flags.max_new_tokens,
            temperature=flags.temperature,
            reasoning=None if flags.reasoning is None else flags.reasoning == "on",
            ignore_eos=flags.ignore_eos,
            timeout_s=flags.request_timeout,
        ),
        seed=flags.seed,
        cache_prefill=flags.cache_prefill == "on",
        dataset=flags.dataset,
        dataset_path=flags.dataset_path,
        dataset_id=flags.dataset_id,
        selection=Selection(flags.req_offset, flags.sample_req_cnt, flags.max_request_num, flags.seed),
        target_model=flags.target_model,
        draft_model=flags.draft_model,
        shared_flags=tuple(shared),
        verifier_flags=tuple(flags.verifier_arg),
        edge_flags=tuple(flags.edge_arg),
        verifier=flags.verifier,
        verifier_metrics=flags.verifier_metrics,
        pace=_pace(flags.pace, flags.modelled_pair),
        network_method=flags.network_method,
        slo=Slo(flags.slo_ttft_ms / 1e3, flags.slo_itl_ms / 1e3),
        prices=prices,
        verifier_gpu=flags.verifier_gpu,
        edge_gpu=flags.edge_gpu,
        out=flags.out,
        ready_timeout_s=flags.ready_timeout,
        given=_given(vars(flags), loads),
    )


def _given(flags: dict[str, object], loads: Sequence[Load]) -> dict[str, object]:
    """The flags as reports show them: without places on this machine."""
    given = {name: without_place(value) if isinstance(value, str) else value for name, value in flags.items()}
    del given["out"]
    return {**given, "loads": ",".join(load.name for load in loads)}


def _each(text: str, parse: Callable[[str], T], what: str) -> tuple[T, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    values = tuple(parse(name) for name in names)
    if not values or len(set(values)) < len(values):
        raise SettingsError(f"--{what}s {text!r}: name at least one {what}, and none twice")
    return values


def _price(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        if equals and name and 0 <= float(value) < math.inf:
            return name, float(value)
    except ValueError:
        pass
    raise SettingsError(f"--price {text!r}; it must be NAME=DOLLARS_PER_S with a number of at least 0")


def _pace(text: str | None, is_modelled: bool) -> Pace | None:
    if text is None:
        if is_modelled:
            raise SettingsError("--modelled-pair needs --pace TARGET,DRAFT")
        return None
    return parse_pace(text, "modelled" if is_modelled else "embedded")
