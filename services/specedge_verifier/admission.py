"""Which waiting session comes next, and who makes room for it or for one that runs: fair between tenants by weight.

A tenant's share is its part of the places or of the KV blocks, whichever is greater, divided by its weight.

Rule 1  Within a tenant order is all: higher priority first, then answers that go on from elsewhere, then first come;
        the last in order is the first to go.
Rule 2  Of several tenants the one with the least share comes next. One that its own limit holds back is passed over.
Rule 3  Sessions go for one that waits only if their tenant still has no less than the other then has. So nothing moves
        to and fro, and a tenant within its share is left alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from specedge.block_pool import BlockPool
from specedge_verifier.session import Session
from specedge_verifier.tenant_account import TenantAccount


@dataclass(slots=True)
class Standing:
    """What one tenant has: places in the running set, and KV blocks."""

    num_running: float
    num_blocks: float
    weight: float

    @classmethod
    def of(cls, account: TenantAccount) -> "Standing":
        return cls(account.num_running, account.num_blocks, account.limits.weight)

    def share(self, max_running: int, num_blocks: int) -> float:
        """By the resource of which the tenant has most."""
        return max(self.num_running / max_running, self.num_blocks / num_blocks) / self.weight


def blocks_for(session: Session, block_size: int) -> int:
    """KV blocks of a session that is admitted."""
    return -(-(len(session.tokens) + 1) // block_size)


def is_held_back(account: TenantAccount, num_more: int, pool: BlockPool) -> bool:
    """Whether a tenant's own share of the blocks is too small for more; a single session runs whatever it is."""
    if account.limits.kv_share is None or not account.num_running:
        return False
    return account.num_blocks + num_more > account.max_blocks(pool.num_blocks)


def next_session(waiting: Iterable[Session], max_running: int, pool: BlockPool) -> Session | None:
    """The session that is due (Rules 1 and 2).

    Args:
        waiting: in order.
        max_running: places in the running set.
        pool: the blocks.
    """
    first: dict[TenantAccount, Session] = {}
    for session in waiting:
        first.setdefault(session.account, session)
    due, least = None, (0.0, 0.0, 0)
    for account, session in first.items():
        if is_held_back(account, blocks_for(session, pool.block_size), pool):
            continue
        share = Standing.of(account).share(max_running, pool.num_blocks)
        if due is None or (share, session.arrived_s, session.handle) < least:
            due, least = session, (share, session.arrived_s, session.handle)
    return due


def displaced(
    claimant: Session, num_places: int, num_blocks: int, running: Sequence[Session], max_running: int, pool: BlockPool
) -> list[Session]:
    """Running sessions that make room for one that waits, the first to go first; none where Rule 3 forbids it.

    Args:
        claimant: waits.
        num_places: it lacks.
        num_blocks: it lacks.
        running: in order.
        max_running: places in the running set.
        pool: the blocks.
    """
    standings: dict[TenantAccount, Standing] = {}
    sessions: dict[TenantAccount, list[Session]] = {}
    for session in running:
        standings.setdefault(session.account, Standing.of(session.account))
        sessions.setdefault(session.account, []).append(session)
    own = Standing.of(claimant.account)
    own.num_running += 1
    own.num_blocks += blocks_for(claimant, pool.block_size)
    claim = own.share(max_running, pool.num_blocks)
    sessions.pop(claimant.account, None)
    going: list[Session] = []
    while num_places > 0 or num_blocks > 0:
        account = max(
            (account for account in sessions if sessions[account]),
            key=lambda account: standings[account].share(max_running, pool.num_blocks),
            default=None,
        )
        if account is None:
            return []
        session, standing = sessions[account].pop(), standings[account]
        standing.num_running -= 1
        standing.num_blocks -= session.blocks.num_blocks
        if standing.share(max_running, pool.num_blocks) < claim:
            return []
        going.append(session)
        num_places -= 1
        num_blocks -= session.blocks.num_blocks
    return going


def first_to_go(session: Session, num_blocks: int, running: Sequence[Session], pool: BlockPool) -> Session:
    """Who gives up its blocks so that `session` goes on: of its own tenant, if that has all it may have; else of the
    tenant that has most of them by its weight.

    Args:
        session: runs.
        num_blocks: it wants beside those it holds.
        running: in order.
        pool: the blocks.
    """
    account = session.account
    if account.num_running == 1 or not is_held_back(account, num_blocks, pool):
        account = max(
            (other.account for other in reversed(running)), key=lambda other: other.num_blocks / other.limits.weight
        )
    return next(other for other in reversed(running) if other.account is account)
