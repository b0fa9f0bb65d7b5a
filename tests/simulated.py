"""A small scenario for tests of the simulator."""

from typing import Any

from specedge_bench.curves import straight_curve
from specedge_bench.network.profiles import network_profile
from specedge_bench.simulation.acceptance_trace import synthetic_trace
from specedge_bench.simulation.scenario import Scenario


def scenario(**changes: Any) -> Scenario:
    """One session without network delay and host costs, with some of it changed."""
    values: dict[str, Any] = {
        "system": "specedge",
        "verifier_curve": straight_curve("30ms"),
        "draft_curve": straight_curve("5ms"),
        "trace": synthetic_trace(num_positions=2000),
        "num_sessions": 1,
        "network": network_profile("rtt0"),
        "num_prompt_tokens": 32,
        "max_tokens": 48,
        "length_spread": 0.0,
        "verifier_host_s": 0.0,
        "edge_host_s": 0.0,
    }
    return Scenario(**(values | changes))
