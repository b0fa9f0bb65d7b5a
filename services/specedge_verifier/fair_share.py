"""What tenants get of a step's rows: max-min fair by weight, and nothing is left that anyone wants.

Rule 1  A part that a tenant does not want is the others'.
Rule 2  Of two tenants that both want more, neither has more rows in the step than the other, relative to their weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from specedge.node_store import FloatArray, IntArray
from specedge_verifier.draft_budget import by_probability


def water_fill(budget: int, used: Sequence[int], wanted: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Divide a budget: levels (what one has, by its weight) rise together, from the lowest on, until it is spent.

    Args:
        budget: to be divided.
        used: what each one has already.
        wanted: the most each one takes.
        weights: above 0.

    Returns:
        What each one gets; together all of the budget, or all that is wanted.
    """
    if sum(wanted) <= budget:
        return list(wanted)
    parts = [*zip(used, wanted, weights, strict=True)]
    begins = [(had / weight, weight) for had, _, weight in parts]
    ends = [((had + want) / weight, -weight) for had, want, weight in parts]
    level, rising, left = 0.0, 0.0, float(budget)
    for at, change in sorted(begins + ends):
        cost = rising * (at - level)
        if cost > left:
            level += left / rising
            break
        level, rising, left = at, rising + change, left - cost
    given = [min(want, max(0, int(level * weight - had))) for had, want, weight in parts]
    rest = budget - sum(given)
    while rest:  # what rounding down has left
        _, index = min(
            ((used[index] + given[index]) / weights[index], index)
            for index in range(len(parts))
            if given[index] < wanted[index]
        )
        given[index] += 1
        rest -= 1
    return given


@dataclass(frozen=True, slots=True)
class NodePart:
    """What a tenant brings to the division of a step's draft nodes.

    Attributes:
        weight: its weight.
        used: rows it has in the step without draft nodes.
        max_nodes: draft nodes it may have; None: any number.
    """

    weight: float
    used: int
    max_nodes: int | None = None


Choose = Callable[[FloatArray, IntArray], IntArray]
"""`draft_budget` for a step: from probabilities and owners to the number of leading candidates of each owner."""


def fair_draft_budget(
    probabilities: FloatArray,
    owners: IntArray,
    tenants: IntArray,
    parts: Sequence[NodePart],
    max_nodes: int,
    choose: Choose,
) -> IntArray:
    """As `draft_budget`, with a bound for each tenant, and fair where the row budget is too small for all that pays.

    Args:
        probabilities, owners: as for `draft_budget`.
        tenants: [num_sessions] whose each session is, an index into `parts`.
        parts: of the tenants.
        max_nodes: what the row budget leaves.
        choose: the draft budget of the step, without tenants.
    """
    order = by_probability(probabilities)
    tenant_of = tenants.take(owners)
    ranked = [order[tenant_of.take(order) == tenant] for tenant in range(len(parts))]

    def choose_best(counts: Sequence[int]) -> IntArray:
        """What pays of so many of each tenant's best candidates."""
        is_kept = np.zeros(len(owners), dtype=np.bool_)
        for own, count in zip(ranked, counts, strict=True):
            is_kept[own[:count]] = True
        chosen = choose(probabilities[is_kept], owners[is_kept])
        return np.concatenate((chosen, np.zeros(len(tenants) - len(chosen), dtype=np.int64)))

    wanted = [
        len(own) if part.max_nodes is None else min(len(own), part.max_nodes)
        for own, part in zip(ranked, parts, strict=True)
    ]
    chosen = choose_best(wanted)
    if int(chosen.sum()) < max_nodes:  # all that pays
        return chosen
    for _ in parts:
        counts = water_fill(max_nodes, [part.used for part in parts], wanted, [part.weight for part in parts])
        chosen = choose_best(counts)
        paying = [int(chosen[tenants == tenant].sum()) for tenant in range(len(parts))]
        if paying == counts:
            break
        # What does not pay for one is the others'.
        wanted = [want if pays == count else pays for want, pays, count in zip(wanted, paying, counts, strict=True)]
    return chosen
