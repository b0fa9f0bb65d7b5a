"""One session's share of the KV block pool: its block table, its slots, and what it puts into the prefix cache."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from specedge.block_pool import BlockPool, block_keys, next_block_key, root_key
from specedge.errors import OutOfBlocks
from specedge_verifier.tenant_account import TenantAccount


class SessionBlocks:
    """Blocks a session holds, in token order.

    Index i of `slots` is where the i-th computed token's keys and values live; rows being verified use the indices
    right after the computed tokens, whatever their depth.

    Args:
        pool: the blocks.
        namespace: whoever has another one never finds what this session publishes.
        account: of the tenant whose blocks these are; without, nobody counts them.

    Attributes:
        num_slots: indices that have a slot.
    """

    def __init__(self, pool: BlockPool, namespace: bytes = b"", account: TenantAccount | None = None) -> None:
        self._pool = pool
        self._namespace = namespace
        self._account = TenantAccount() if account is None else account
        self._block_ids: list[int] = []
        self._slots = np.empty(0, dtype=np.int64)
        self.num_slots = 0
        self._num_published = 0
        self._last_key = root_key(namespace)
        self._prefix_keys: tuple[int, list[bytes]] = (0, [])  # number of tokens they were made for, and keys

    @property
    def num_blocks(self) -> int:
        return len(self._block_ids)

    @property
    def num_spare(self) -> int:
        """Blocks that may be added now, by the pool and by the tenant's share of it."""
        free, account = self._pool.num_free, self._account
        if account.limits.kv_share is None:
            return free
        return max(0, min(free, account.max_blocks(self._pool.num_blocks) - account.num_blocks))

    def slots(self, start: int, end: int) -> npt.NDArray[np.int64]:
        """Slots of indices start..end-1; a view, valid until the next call that changes the blocks."""
        return self._slots[start:end]

    def match_prefix(self, token_ids: Sequence[int]) -> int:
        """Take what the prefix cache has of these tokens, never the last one, whose logits are wanted.

        Returns:
            Number of tokens whose keys and values need no computing.
        """
        assert not self._block_ids, "prefix matched for a session that holds blocks"
        size = self._pool.block_size
        if self._prefix_keys[0] != len(token_ids):  # a waiting session asks again and again for the same tokens
            self._prefix_keys = len(token_ids), block_keys(token_ids[: len(token_ids) - 1], size, self._namespace)
        keys = self._prefix_keys[1]
        matched = self._pool.match(keys)
        self._append(matched)
        self._num_published = len(matched)
        if matched:
            self._last_key = keys[len(matched) - 1]
        return len(matched) * size

    def withdraw(self) -> None:
        """Undo the last `match_prefix` of a session that must wait; its next lookup is the one that counts."""
        self._pool.stats.queries -= len(self._prefix_keys[1])
        self._pool.stats.hits -= self._num_published
        self.release()

    def num_missing(self, num_slots: int) -> int:
        """Blocks wanted beside those held, for so many indices; not above 0 where there are enough."""
        return -((self.num_slots - num_slots) // self._pool.block_size)

    def reserve(self, num_slots: int) -> None:
        """Hold blocks for at least `num_slots` indices.

        Raises:
            OutOfBlocks: they are not free, or beyond the tenant's share while it has other sessions; nothing changes.
        """
        if num_slots <= self.num_slots:
            return
        num_blocks, account = self.num_missing(num_slots), self._account
        if account.limits.kv_share is not None and account.num_running > 1:
            most = account.max_blocks(self._pool.num_blocks)
            if account.num_blocks + num_blocks > most:
                raise OutOfBlocks(f"{num_blocks} more KV blocks wanted, {account.num_blocks} of {most} are held")
        self._append(self._pool.allocate(num_blocks))

    def publish(self, token_ids: Sequence[int], num_computed: int) -> None:
        """Make the blocks that `num_computed` tokens have filled since the last call findable by others."""
        size = self._pool.block_size
        for index in range(self._num_published, num_computed // size):
            self._last_key = next_block_key(self._last_key, token_ids[index * size : (index + 1) * size])
            self._pool.publish(self._block_ids[index], self._last_key)
            self._num_published = index + 1

    def trim(self, num_slots: int) -> None:
        """Give back the blocks beyond the first `num_slots` indices (rejected nodes)."""
        keep = -(-num_slots // self._pool.block_size)
        if keep < len(self._block_ids):
            self._pool.release(self._block_ids[keep:])
            self._account.num_blocks -= len(self._block_ids) - keep
            del self._block_ids[keep:]
            self.num_slots = keep * self._pool.block_size

    def settle(self, token_ids: Sequence[int], num_computed: int) -> None:
        """After a step: publish what is full, keep room for the root, give back the rest (rejected nodes)."""
        size = self._pool.block_size
        if num_computed >= (self._num_published + 1) * size:
            self.publish(token_ids, num_computed)
        if self.num_slots > num_computed + size:
            self.trim(num_computed + 1)

    def release(self) -> None:
        """Give everything back; what was published stays findable until evicted."""
        self._pool.release(self._block_ids)
        self._account.num_blocks -= len(self._block_ids)
        self._block_ids.clear()
        self.num_slots = 0
        self._num_published = 0
        self._last_key = root_key(self._namespace)

    def _append(self, block_ids: list[int]) -> None:
        start, end = self.num_slots, self.num_slots + len(block_ids) * self._pool.block_size
        if end > len(self._slots):
            grown = np.empty(max(end, 2 * len(self._slots)), dtype=np.int64)
            grown[:start] = self._slots[:start]
            self._slots = grown
        slots = self._pool.slots
        self._slots[start:end] = slots[block_ids[0]] if len(block_ids) == 1 else slots[block_ids].ravel()
        self._block_ids += block_ids
        self._account.num_blocks += len(block_ids)
        self.num_slots = end
