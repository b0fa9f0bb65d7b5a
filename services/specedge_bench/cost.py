"""What a token costs: one definition for every system.

Rule 1  Numerator: dollars. *Billed* pays every reserved GPU for the cell's whole wall time; *active* pays each only for
        its busy seconds.
Rule 2  Denominator: answer tokens of requests that ended well, up to and including the end-of-sequence token.
Rule 3  A GPU is reserved if the system needs it: the verifiers' always, one per edge agent unless nothing drafts there.
"""

import math
from dataclasses import dataclass

AUTOREGRESSIVE = "autoregressive"
SERVER_ONLY = "server-only"


def drafts_on_edge(system: str) -> bool:
    """Whether each edge agent of this system needs a GPU of its own."""
    return system.split(":")[0] not in (AUTOREGRESSIVE, SERVER_ONLY)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a cell reserved and used."""

    num_tokens: int
    wall_s: float
    verifier_busy_s: float
    """Of the verifiers' GPUs, the draft model's part included where both share one."""
    edge_busy_s: float
    """Summed over the edges' own GPUs."""
    num_edge_gpus: int
    num_verifier_gpus: int = 1


@dataclass(frozen=True, slots=True)
class Cost:
    """Dollars of one cell and its tokens; NaN per-token figures where it has no token."""

    num_tokens: int
    billed_dollars: float
    active_dollars: float

    @property
    def billed_per_million(self) -> float:
        """Dollars per million tokens for every GPU reserved."""
        return self._per_million(self.billed_dollars)

    @property
    def active_per_million(self) -> float:
        """Dollars per million tokens for busy seconds only."""
        return self._per_million(self.active_dollars)

    @property
    def billed_tokens_per_dollar(self) -> float:
        return self._per_dollar(self.billed_dollars)

    @property
    def active_tokens_per_dollar(self) -> float:
        return self._per_dollar(self.active_dollars)

    def _per_million(self, dollars: float) -> float:
        return dollars / self.num_tokens * 1e6 if self.num_tokens else math.nan

    def _per_dollar(self, dollars: float) -> float:
        return self.num_tokens / dollars if dollars > 0 else math.nan


def cost(usage: Usage, verifier_price: float, edge_price: float) -> Cost:
    """The cost of a cell.

    Args:
        usage: seconds and tokens.
        verifier_price: $/s of one verifier's GPU.
        edge_price: $/s of one edge's GPU; NaN if unknown.
    """
    # A system without edge GPUs has a cost even where the edge's GPU has no price.
    edge_billed = usage.num_edge_gpus * usage.wall_s * edge_price if usage.num_edge_gpus else 0.0
    edge_active = usage.edge_busy_s * edge_price if usage.edge_busy_s else 0.0
    return Cost(
        num_tokens=usage.num_tokens,
        billed_dollars=usage.num_verifier_gpus * usage.wall_s * verifier_price + edge_billed,
        active_dollars=usage.verifier_busy_s * verifier_price + edge_active,
    )
