"""KV blocks: reference counts, a prefix cache over full blocks, least recently used eviction.

Rule 1  A block is held (someone has a reference) or free; free + held = total, always.
Rule 2  A published block keeps its key when its last reference goes: it is free *and* findable until evicted.
Rule 3  Blocks without a key are handed out first; then the one whose last reference went longest ago is evicted.
Rule 4  Only full blocks of committed tokens are published, under a key that depends on every token before them.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from specedge.errors import OutOfBlocks

_KEY_BYTES = 16


def root_key(namespace: bytes = b"") -> bytes:
    """The key before the first block; prefixes of different namespaces (tenants) never match each other."""
    return blake2b(namespace, digest_size=_KEY_BYTES, person=b"specedge prefix").digest()


def next_block_key(previous_key: bytes, block_token_ids: Sequence[int]) -> bytes:
    """The key of a full block, given the key of the block before it."""
    return blake2b(previous_key + array("I", block_token_ids).tobytes(), digest_size=_KEY_BYTES).digest()


def block_keys(token_ids: Sequence[int], block_size: int, namespace: bytes = b"") -> list[bytes]:
    """Chained keys of the full blocks of `token_ids`; an incomplete last block has none."""
    keys = []
    key = root_key(namespace)
    for end in range(block_size, len(token_ids) + 1, block_size):
        key = next_block_key(key, token_ids[end - block_size : end])
        keys.append(key)
    return keys


@dataclass(slots=True)
class PrefixCacheStats:
    """Running totals, in blocks."""

    queries: int = 0
    hits: int = 0
    evictions: int = 0


class BlockPool:
    """Owns the numbers 0..num_blocks-1; the tensors they stand for belong to the model runner."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.slots = np.arange(num_blocks * block_size).reshape(num_blocks, block_size)  # of each block
        self.stats = PrefixCacheStats()
        self._num_references = [0] * num_blocks
        self._num_held = 0
        self._blank = list(range(num_blocks - 1, -1, -1))  # free without a key; a stack
        self._evictable: dict[int, None] = {}  # free with a key, in order of release
        self._block_of_key: dict[bytes, int] = {}
        self._key_of_block: dict[int, bytes] = {}

    @property
    def num_held(self) -> int:
        return self._num_held

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can hand out, the evictable ones included."""
        return self.num_blocks - self._num_held

    @property
    def num_cached(self) -> int:
        """Blocks that `match` can find, held or not."""
        return len(self._block_of_key)

    def num_references(self, block_id: int) -> int:
        return self._num_references[block_id]

    def allocate(self, num_blocks: int) -> list[int]:
        """Hands out blocks with one reference each; raises OutOfBlocks and changes nothing if there are too few."""
        if num_blocks > self.num_blocks - self._num_held:
            raise OutOfBlocks(f"{num_blocks} KV blocks wanted, {self.num_free} of {self.num_blocks} are free")
        block_ids = []
        for _ in range(num_blocks):
            block_id = self._blank.pop() if self._blank else self._evict()
            self._num_references[block_id] = 1
            block_ids.append(block_id)
        self._num_held += num_blocks
        return block_ids

    def acquire(self, block_ids: Iterable[int]) -> None:
        """Adds a reference to blocks that are held, or free but still in the cache."""
        for block_id in block_ids:
            if self._num_references[block_id] == 0:
                del self._evictable[block_id]
                self._num_held += 1
            self._num_references[block_id] += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """Drops one reference each, last block first: the end of a prefix is evicted before its beginning."""
        for block_id in reversed(block_ids):
            assert self._num_references[block_id] > 0, f"block {block_id} released while free"
            self._num_references[block_id] -= 1
            if self._num_references[block_id] == 0:
                self._num_held -= 1
                if block_id in self._key_of_block:
                    self._evictable[block_id] = None
                else:
                    self._blank.append(block_id)

    def publish(self, block_id: int, key: bytes) -> None:
        """Makes a held, full block findable; of two blocks with the same content the first stays the findable one."""
        assert self._num_references[block_id] > 0, f"block {block_id} published while free"
        if key in self._block_of_key:
            return
        assert block_id not in self._key_of_block, f"block {block_id} published under a second key"
        self._block_of_key[key] = block_id
        self._key_of_block[block_id] = key

    def match(self, keys: Sequence[bytes]) -> list[int]:
        """Blocks of the longest cached prefix of `keys`, one reference each added for the caller."""
        block_ids = []
        for key in keys:
            block_id = self._block_of_key.get(key)
            if block_id is None:
                break
            block_ids.append(block_id)
        self.acquire(block_ids)
        self.stats.queries += len(keys)
        self.stats.hits += len(block_ids)
        return block_ids

    def check_integrity(self) -> None:
        """Asserts rules 1 and 2 over the whole pool; linear in its size."""
        free = set(self._blank) | set(self._evictable)
        held = {block_id for block_id, count in enumerate(self._num_references) if count > 0}
        assert len(free) == len(self._blank) + len(self._evictable), "a block is free twice"
        assert free.isdisjoint(held) and len(free) + len(held) == self.num_blocks, "free + held != total"
        assert len(held) == self._num_held and min(self._num_references, default=0) >= 0
        assert {key: block for block, key in self._key_of_block.items()} == self._block_of_key
        assert set(self._key_of_block) - held == set(self._evictable), "a free block with a key is not evictable"

    def _evict(self) -> int:
        block_id = next(iter(self._evictable))
        del self._evictable[block_id]
        del self._block_of_key[self._key_of_block.pop(block_id)]
        self.stats.evictions += 1
        return block_id
