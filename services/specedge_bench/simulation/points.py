"""What the flags of `specedge bench simulate` ask for, as points of a grid."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from specedge.drafting.growth import GrowthSettings
from specedge.errors import SpecEdgeError
from specedge_bench.curves import StepCurve, list_curves, load_curve
from specedge_bench.devices import BadPrice, price_table, slug
from specedge_bench.network.profiles import network_profile
from specedge_bench.simulation.acceptance_trace import AcceptanceTrace, load_trace
from specedge_bench.simulation.flags import DEVICE_MEMORY, UNLIMITED
from specedge_bench.simulation.grid import Point, combinations
from specedge_bench.simulation.kv_memory import num_kv_blocks
from specedge_bench.simulation.priced import Devices
from specedge_bench.simulation.scenario import BLOCK_SIZE, Scenario, ScenarioError
from specedge_verifier.queue_bounds import QueueLimits

ROOFLINE = "roofline"
_AXES = ("sessions", "edges", "verifiers", "rate", "network", "trace", "verifier-curve", "draft-curve", "seed")


class PointMaker:
    """Makes points from flags; every curve and trace is loaded once.

    Args:
        options: as parsed.

    Raises:
        SpecEdgeError: a name is unknown, or a value makes no sense; names what is known.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._prices = price_table(options.price)
        self._curves: dict[str, StepCurve] = {}
        self._traces: dict[str, AcceptanceTrace] = {}

    def points(self) -> list[Point]:
        """All of them; the systems of a setting stand together."""
        options = self._options
        networks = [*options.network, *(f"{rtt_ms:g}ms" for rtt_ms in options.rtt_ms)] or ["rtt15"]
        values: dict[str, list[Any]] = {name: vars(options)[name.replace("-", "_")] for name in _AXES}
        values["network"] = [network_profile(name).name for name in networks]
        places = combinations(values)
        points = [self._point({**system, **place}) for place in places for system in self._systems()]
        self._check_prices(points)
        return points

    def _systems(self) -> list[dict[str, object]]:
        """Every system; mode and batch type are specedge's alone."""
        options = self._options
        systems: list[dict[str, object]] = []
        for system in options.system:
            is_edge = system == "specedge"
            modes, batch_types = (options.mode, options.batch_type) if is_edge else ([None], [None])
            systems += combinations({"system": [system], "mode": modes, "batch-type": batch_types})
        return systems

    def _point(self, setting: Mapping[str, Any]) -> Point:
        options, scenario = self._options, self._scenario(setting)
        edge_curve = self._curve(setting["draft-curve"])
        devices = Devices(
            options.verifier_gpu or scenario.verifier_curve.device, options.edge_gpu or edge_curve.device, self._prices
        )
        seeds = range(scenario.seed, scenario.seed + options.repetitions)
        return Point(setting, tuple(replace(scenario, seed=seed) for seed in seeds), devices)

    def _scenario(self, setting: Mapping[str, Any]) -> Scenario:
        options, system = self._options, setting["system"]
        verifier_curve, draft_curve = self._curve(setting["verifier-curve"]), self._curve(setting["draft-curve"])
        if system == "server-only":
            draft_curve = self._server_draft_curve(verifier_curve, draft_curve)
        return Scenario(
            system=system,
            verifier_curve=verifier_curve,
            draft_curve=draft_curve,
            trace=self._trace(setting["trace"]),
            num_sessions=setting["sessions"],
            requests_per_user=options.requests_per_user,
            arrival_rate=setting["rate"],
            num_edges=setting["edges"] or max(setting["verifiers"], -(-setting["sessions"] // options.users_per_edge)),
            num_verifiers=setting["verifiers"],
            verifier_choice=options.verifier_choice,
            network=network_profile(setting["network"]),
            mode=setting["mode"] or "streamed",
            growth=GrowthSettings(
                options.max_n_beams, options.max_beam_len, options.max_branch_width, options.max_budget
            ),
            batch_type=setting["batch-type"] or "ready",
            num_prompt_tokens=options.prompt_tokens,
            max_tokens=options.max_tokens,
            max_batch_size=options.max_batch_size,
            max_num_batched_tokens=options.max_num_batched_tokens,
            max_tree_nodes=options.max_tree_nodes,
            queue=None if options.max_waiting is None else QueueLimits(options.max_batch_size + options.max_waiting),
            num_kv_blocks=self._num_kv_blocks(verifier_curve, draft_curve if system == "server-only" else None),
            verifier_host_s=options.verifier_host_ms / 1e3,
            edge_host_s=options.edge_host_ms / 1e3,
            verifier_session_s=options.verifier_session_us / 1e6,
            seed=setting["seed"],
        )

    def _num_kv_blocks(self, target: StepCurve, local_draft: StepCurve | None) -> int | None:
        asked = self._options.num_kv_blocks
        if asked == DEVICE_MEMORY:
            return num_kv_blocks(target, local_draft, BLOCK_SIZE)
        return None if asked == UNLIMITED else int(asked)

    def _server_draft_curve(self, verifier_curve: StepCurve, edge_curve: StepCurve) -> StepCurve:
        """The edge's draft model on the verifier's device: a profile of the verifier's kind, else a roofline."""
        if self._options.server_draft_curve:
            return self._curve(self._options.server_draft_curve)
        if not (verifier_curve.device and edge_curve.model):
            return edge_curve  # a straight line belongs to no device or model
        device, model = verifier_curve.device, edge_curve.model
        is_roofline = verifier_curve.method == ROOFLINE
        for name in list_curves():
            curve = load_curve(name)
            if (slug(curve.device), curve.model) == (slug(device), model) and (curve.method == ROOFLINE) == is_roofline:
                return curve
        try:
            return self._curve(f"{device}/{model}")
        except SpecEdgeError as error:
            raise ScenarioError(
                f"server-only needs a curve of {model} on {device}, of which there is no profile and no roofline: name "
                "one with --server-draft-curve"
            ) from error

    def _curve(self, name: str) -> StepCurve:
        if name not in self._curves:
            self._curves[name] = load_curve(name)
        return self._curves[name]

    def _trace(self, name: str) -> AcceptanceTrace:
        if name not in self._traces:
            self._traces[name] = load_trace(name)
        return self._traces[name]

    def _check_prices(self, points: Sequence[Point]) -> None:
        """A price for a device that nothing runs on is a slip of the pen."""
        used = dict.fromkeys(name for point in points for name in (point.devices.verifier, point.devices.edge) if name)
        for text in self._options.price:
            name = text.rpartition("=")[0]
            if slug(name) not in map(slug, used):
                raise BadPrice(f"price {text!r}: nothing runs on {name}; devices here are {', '.join(used) or 'none'}")
