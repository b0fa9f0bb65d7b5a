"""Whether one more session may be opened: by its tenant's limits, the bounds of the queue, and its fair share of it.

Rule 1  A refused session changes nothing but a count.
Rule 2  When the verifier has all the sessions it takes, a tenant that has less than its share of them, by weight among
        the tenants that have any, may still open one: another tenant's flood does not keep it out.
"""

from specedge.block_pool import BlockPool
from specedge.errors import CapacityExceeded, InvalidRequest, TenantLimit
from specedge.wire.messages import OpenSession
from specedge_verifier.queue_bounds import QueueBounds
from specedge_verifier.tenant_account import TenantAccount


class SessionQuota:
    """Counts the sessions of all tenants.

    Args:
        bounds: of the queue; few more sessions under Rule 2.
        pool: the KV blocks.
    """

    def __init__(self, bounds: QueueBounds, pool: BlockPool) -> None:
        self._bounds = bounds
        self._num_blocks = pool.num_blocks
        self._block_size = pool.block_size
        self._num_sessions: dict[TenantAccount, int] = {}

    def admit(self, message: OpenSession, account: TenantAccount) -> None:
        """Returns if a tenant may open this session.

        Raises InvalidRequest (a prompt or answer beyond its limits), TenantLimit (too many sessions), CapacityExceeded
        (the queue is full, or too slow).
        """
        limits, num_prompt = account.limits, len(message.prompt_ids)
        if limits.max_prompt_tokens is not None and num_prompt > limits.max_prompt_tokens:
            account.usage.refused("prompt")
            raise InvalidRequest(
                f"the prompt has {num_prompt} tokens; max_prompt_tokens of tenant {account.name} is "
                f"{limits.max_prompt_tokens}",
                "prompt_ids",
            )
        num_tokens = num_prompt + message.sampling.max_tokens
        needed, most = -(-num_tokens // self._block_size), account.max_blocks(self._num_blocks)
        if limits.kv_share is not None and needed > most:
            account.usage.refused("kv")
            raise InvalidRequest(
                f"{num_prompt} prompt tokens and max_tokens {message.sampling.max_tokens} need {needed} KV blocks; "
                f"kv_share of tenant {account.name} is {limits.kv_share:g}, which is {most}",
                "max_tokens",
            )
        num_own = self._num_sessions.get(account, 0)
        if limits.max_sessions is not None and num_own >= limits.max_sessions:
            account.usage.refused("sessions")
            raise TenantLimit(
                f"{num_own} sessions of tenant {account.name} are running or waiting, and max_sessions is "
                f"{limits.max_sessions}",
                self._bounds.end_s(account),
            )
        num_all, part = sum(self._num_sessions.values()), self._fair_part(account)
        no_room = self._bounds.find(message, account, num_all, part)
        if no_room is None or (no_room.reason == "queue" and num_own < part * self._bounds.limits.max_sessions):
            return
        account.usage.refused(no_room.reason)
        raise CapacityExceeded(no_room.message, no_room.retry_after_s, no_room.from_tokens)

    def opened(self, message: OpenSession, account: TenantAccount) -> None:
        """Count a session."""
        self._num_sessions[account] = self._num_sessions.get(account, 0) + 1
        self._bounds.opened(message, account)

    def closed(self, account: TenantAccount) -> None:
        """Count it no longer."""
        self._num_sessions[account] -= 1
        if not self._num_sessions[account]:
            del self._num_sessions[account]

    def _fair_part(self, account: TenantAccount) -> float:
        accounts = self._num_sessions.keys() | {account}
        return account.limits.weight / sum(each.limits.weight for each in accounts)
