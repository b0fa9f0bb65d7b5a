"""A step's rows by tenant: who may decode, what prompts may take, what draft nodes may be added."""

from collections.abc import Iterable, Sequence
from math import inf
from operator import add, attrgetter
from typing import TYPE_CHECKING

from specedge_verifier.fair_share import NodePart, water_fill
from specedge_verifier.session import Session
from specedge_verifier.tenant_account import TenantAccount

if TYPE_CHECKING:
    from specedge_verifier.scheduler import Planned


_MORE_NODES = 8
"""Rows kept for draft nodes of a tenant that had none in the last step: nobody knows yet how many will pay."""


class Rows:
    """Rows for prompts: one budget, or one part of it for each tenant."""

    def __init__(self, budget: int, parts: dict[TenantAccount, int] | None = None) -> None:
        self.left = budget
        self._parts = parts

    def available(self, account: TenantAccount) -> int:
        """What a tenant may still take."""
        return self.left if self._parts is None else min(self.left, self._parts[account])

    def take(self, account: TenantAccount, num_rows: int) -> None:
        """A tenant takes so many of those available to it."""
        self.left -= num_rows
        if self._parts is not None:
            self._parts[account] -= num_rows


def pace_roots(
    accounts: Sequence[TenantAccount], decoding: Sequence["Planned"], now_s: float
) -> tuple[list["Planned"], float]:
    """Leave out sessions of tenants that decode faster than they may; each has its turn.

    Returns:
        Who decodes, and the seconds until one of the others may.
    """
    kept: list[Planned] = []
    wait_s = inf
    for account in accounts:
        own = [item for item in decoding if item.session.account is account]
        rate = account.limits.max_verified_tokens_per_second
        if rate is not None:
            account.pace.refill(rate, now_s)
            num_roots = account.pace.num_roots
            if len(own) > num_roots:
                account.turn %= len(own)
                own = [*own[account.turn :], *own[: account.turn]][:num_roots]
                account.turn += num_roots
                wait_s = min(wait_s, account.pace.wait_s)
        kept += own
    return sorted(kept, key=attrgetter("session.order")), wait_s


def divide_prompts(
    accounts: Sequence[TenantAccount],
    decoding: Iterable["Planned"],
    prefilling: Sequence[Session],
    num_rows: int,
    num_logits: int,
) -> tuple[Rows, Rows]:
    """What prompts may take in a step: of what a tenant's prompts do not want, its draft nodes keep their part.

    Args:
        accounts: of all sessions.
        decoding: has its rows already.
        prefilling: wants them.
        num_rows: left for prompts.
        num_logits: rows after which log-probabilities of prompts may be computed.

    Returns:
        Rows, and such as log-probabilities are computed after.
    """
    if len(accounts) == 1 or not prefilling:
        return Rows(num_rows), Rows(num_logits)
    used, scored, plain, live = (dict.fromkeys(accounts, 0) for _ in range(4))
    for item in decoding:
        used[item.session.account] += 1
        live[item.session.account] += item.session.trie.num_live
    for session in prefilling:
        (plain if session.is_prompt_scored else scored)[session.account] += session.num_uncomputed
    weights = [account.limits.weight for account in accounts]
    logits = water_fill(num_logits, [0] * len(weights), [*scored.values()], weights)
    prompts = [*map(add, plain.values(), logits)]
    nodes = [min(live[account], 2 * account.num_nodes + _MORE_NODES) for account in accounts]
    rows = water_fill(num_rows, [*used.values()], [*map(add, prompts, nodes)], weights)
    rows = [*map(min, rows, prompts)]
    return (
        Rows(num_rows, dict(zip(accounts, rows, strict=True))),
        Rows(num_logits, dict(zip(accounts, logits, strict=True))),
    )


def node_parts(accounts: Sequence[TenantAccount], planned: Iterable["Planned"]) -> list[NodePart]:
    """What each tenant brings to the division of draft nodes."""
    used, roots = (dict.fromkeys(accounts, 0) for _ in range(2))
    for item in planned:
        used[item.session.account] += item.num_chunk
        roots[item.session.account] += item.samples
    return [
        NodePart(
            account.limits.weight,
            used[account],
            None if account.limits.max_verified_tokens_per_second is None else account.pace.num_nodes(roots[account]),
        )
        for account in accounts
    ]


def book_rows(accounts: Iterable[TenantAccount], planned: Iterable["Planned"]) -> None:
    """Remember what tenants verify in the step."""
    for account in accounts:
        account.num_nodes = 0
    for item in planned:
        if item.samples:
            account = item.session.account
            account.num_nodes += item.num_nodes
            account.pace.spend(1 + item.num_nodes)
