"""What a scenario's users ask and when; whatever system answers them, they ask the same."""

from dataclasses import dataclass
from random import Random

from specedge_bench.simulation.scenario import Replayed, Scenario


@dataclass(frozen=True, slots=True)
class User:
    """One user of one edge.

    Attributes:
        index, edge: numbers within the scenario.
        arrival_s: when the first request is sent.
        requests: one after the other.
        warm_up: likewise, before all that counts.
    """

    index: int
    edge: int
    arrival_s: float
    requests: tuple[Replayed, ...]
    warm_up: tuple[Replayed, ...] = ()


def users_of(scenario: Scenario) -> list[User]:
    """Everybody, in order of arrival."""
    requests, arrivals = Random(f"{scenario.seed} requests"), Random(f"{scenario.seed} arrivals")
    num_requests = scenario.requests_per_user if scenario.arrival_rate is None else 1
    users, arrival_s = [], 0.0
    for index in range(scenario.num_sessions):
        if scenario.arrival_rate is not None:
            arrival_s += arrivals.expovariate(scenario.arrival_rate)
        asked = scenario.replayed[index] if scenario.replayed else _drawn(scenario, requests, num_requests)
        warm_up = scenario.warm_up[index] if scenario.warm_up else ()
        users.append(User(index, index % scenario.num_edges, arrival_s, asked, warm_up))
    return users


def _drawn(scenario: Scenario, random: Random, num_requests: int) -> tuple[Replayed, ...]:
    low, high = 1 - scenario.length_spread, 1 + scenario.length_spread
    return tuple(
        Replayed(
            max(1, round(scenario.num_prompt_tokens * random.uniform(low, high))),
            max(1, round(scenario.max_tokens * random.uniform(low, high))),
            random.randrange(len(scenario.trace.ranks)),
        )
        for _ in range(num_requests)
    )
