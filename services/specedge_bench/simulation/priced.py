"""What simulated tokens cost, by the definition of `specedge_bench.cost`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan

from specedge_bench.cost import Cost, Usage, cost
from specedge_bench.devices import price_of
from specedge_bench.simulation.result import SimResult
from specedge_bench.simulation.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Devices:
    """What a scenario computes on, and dollars per second by device.

    Attributes:
        verifier, edge: names; empty where a curve belongs to no device.
    """

    verifier: str
    edge: str
    prices: Mapping[str, float]

    def unpriced(self, scenario: Scenario) -> list[str]:
        """Devices of a scenario that have no price."""
        names = [self.verifier, self.edge] if _num_edge_gpus(scenario) else [self.verifier]
        return [name for name in dict.fromkeys(names) if isnan(price_of(self.prices, name))]


def simulated_cost(scenario: Scenario, results: Sequence[SimResult], devices: Devices) -> Cost:
    """The cost of all repetitions of a scenario together; NaN where a price is missing."""
    draft_busy_s = sum(result.draft_busy_s for result in results)
    num_edge_gpus = _num_edge_gpus(scenario)
    usage = Usage(
        num_tokens=sum(result.num_tokens for result in results),
        wall_s=sum(result.wall_s for result in results),
        verifier_busy_s=sum(result.verifier_busy_s for result in results),
        edge_busy_s=draft_busy_s if num_edge_gpus else 0.0,
        num_edge_gpus=num_edge_gpus,
        num_verifier_gpus=scenario.num_verifiers,
    )
    return cost(usage, price_of(devices.prices, devices.verifier), price_of(devices.prices, devices.edge))


def _num_edge_gpus(scenario: Scenario) -> int:
    return scenario.num_edges if scenario.system == "specedge" else 0
