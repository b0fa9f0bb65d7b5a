"""A tenant of the verifier: what it may take, and what it has taken.

Rule 1  A tenant's limits may change at any moment; its account stays, so that nothing it has taken is forgotten.
Rule 2  Speculation is the first to go: draft nodes take from the upper half of a tenant's bucket only, so that plain
        decoding is slowed when they are gone and not before.
"""

from dataclasses import dataclass, field
from math import inf

_ROUNDING = 1e-6  # tokens: a bucket that has been waited for is not found a hair too empty

_MAX_DRAFTERS = 16  # of one tenant that are told apart

DEFAULT_TENANT = "default"
"""Who everyone is where there is no tenants file."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """What one tenant may take; None is any number.

    Attributes:
        name: in the tenants file, logs and metrics.
        weight: its part of what tenants compete for, relative to those of the others.
        max_sessions: running and waiting at a time.
        max_verified_tokens_per_second: rows computed to choose its tokens: roots and draft nodes.
        kv_share: the part of all KV blocks that its sessions may hold together, 0 to 1.
        max_prompt_tokens: of one prompt.
    """

    name: str
    weight: float = 1.0
    max_sessions: int | None = None
    max_verified_tokens_per_second: int | None = None
    kv_share: float | None = None
    max_prompt_tokens: int | None = None

    @property
    def is_bounded(self) -> bool:
        """Whether the scheduler has anything to look at beside the weight."""
        return self.kv_share is not None or self.max_verified_tokens_per_second is not None


class Pace:
    """A bucket that holds one second's tokens and gains them back evenly.

    Law: in any `t` seconds at most `rate * (t + 1)` tokens are let through, and those that end a prompt.
    """

    def __init__(self) -> None:
        self._rate = 0
        self._level = 0.0
        self._filled_s = -inf

    def refill(self, rate: int, now_s: float) -> None:
        """Gains what has come since the last time; a new rate changes the bucket."""
        self._rate = rate
        gained = (now_s - self._filled_s) * rate
        self._level = min(self._capacity, self._level + max(0.0, gained))
        self._filled_s = now_s

    @property
    def num_roots(self) -> int:
        """Sessions that may decode now."""
        return max(0, int(self._level + _ROUNDING))

    def num_nodes(self, num_roots: int) -> int:
        """Draft nodes that may be verified beside so many roots (Rule 2)."""
        return max(0, int(self._level + _ROUNDING - num_roots - self._capacity / 2))

    def spend(self, num_tokens: int) -> None:
        """So many are computed; the bucket may run into debt."""
        self._level -= num_tokens

    @property
    def wait_s(self) -> float:
        """Seconds until one more session may decode."""
        return max(0.0, 1.0 - self._level) / self._rate

    @property
    def _capacity(self) -> float:
        return max(2.0, self._rate)


@dataclass(slots=True)
class Usage:
    """Running totals of one tenant, in tokens unless they say otherwise.

    Attributes:
        num_sessions: sessions opened, resumed ones again.
        prompt: with which sessions were opened, those committed before a resumption included.
        committed: given to the tenant.
        verified: rows computed to choose them: roots and draft nodes.
        drafted: draft nodes received.
        refusals: sessions refused, by reason.
    """

    num_sessions: int = 0
    prompt: int = 0
    committed: int = 0
    verified: int = 0
    drafted: int = 0
    refusals: dict[str, int] = field(default_factory=dict)

    def refused(self, reason: str) -> None:
        """Count a refused session."""
        self.refusals[reason] = self.refusals.get(reason, 0) + 1


@dataclass(slots=True, eq=False)
class TenantAccount:
    """One tenant's limits as they are now, and what it has.

    Attributes:
        limits: replaced when the tenants file changes (Rule 1).
        salt: secret; prefixes are cached under it, so that no other tenant finds them.
        num_running: sessions in the running set.
        num_waiting: sessions in the queue for it.
        num_blocks: KV blocks its sessions hold; one that several hold counts for each.
        num_nodes: draft nodes of its sessions in the last step.
        drafters: a number for each of its drafters, the one unused longest first.
        turn: where the next round among its decoding sessions begins while they are slowed.
    """

    limits: Tenant = field(default_factory=lambda: Tenant(DEFAULT_TENANT))
    salt: bytes = b""
    usage: Usage = field(default_factory=Usage)
    pace: Pace = field(default_factory=Pace)
    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_nodes: int = 0
    drafters: dict[str, int] = field(default_factory=dict)
    turn: int = 0

    @property
    def name(self) -> str:
        return self.limits.name

    def drafter_id(self, own_id: str) -> str:
        """A drafter of this tenant among those of all tenants.

        What one tenant's drafts are worth says nothing of another's; and one that makes up ever new names pushes only
        its own out of what is known.
        """
        number = self.drafters.pop(own_id, None)
        if number is None:
            is_full = len(self.drafters) == _MAX_DRAFTERS
            number = self.drafters.pop(next(iter(self.drafters))) if is_full else len(self.drafters)
        self.drafters[own_id] = number
        return f"{self.name}/{number}"

    def max_blocks(self, num_blocks: int) -> int:
        """KV blocks of a pool of `num_blocks` that its sessions may hold together."""
        share = self.limits.kv_share
        return num_blocks if share is None else int(share * num_blocks)
