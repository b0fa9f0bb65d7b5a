"""The block pool against a naive model that keeps one list in order of release."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from specedge.block_pool import BlockPool, block_keys, next_block_key, root_key
from specedge.errors import OutOfBlocks

NUM_BLOCKS = 7
KEYS = block_keys(list(range(100, 105)), 1)  # the chained keys of one five-block text


class BlockPoolMachine(RuleBasedStateMachine):
    """Owners hold lists of blocks; the model is a reference counter, a key map and the order of release."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS, 16)
        self.owners: list[list[int]] = []
        self.findable: dict[bytes, int] = {}
        self.released: list[int] = []  # free blocks with a key, oldest first
        self.num_evicted = 0

    def references(self) -> Counter[int]:
        return Counter(block for owner in self.owners for block in owner)

    def num_held(self) -> int:
        return len(self.references())

    @rule(count=st.integers(0, NUM_BLOCKS + 1))
    def allocate(self, count: int) -> None:
        num_free = NUM_BLOCKS - self.num_held()
        if count > num_free:
            with pytest.raises(OutOfBlocks):
                self.pool.allocate(count)
            return
        num_evicted = max(0, count - (num_free - len(self.released)))
        evicted, self.released = self.released[:num_evicted], self.released[num_evicted:]
        self.findable = {key: block for key, block in self.findable.items() if block not in evicted}
        self.num_evicted += num_evicted
        held_before = set(self.references())
        blocks = self.pool.allocate(count)
        assert len(set(blocks)) == count
        assert held_before.isdisjoint(blocks)
        assert set(evicted) <= set(blocks)
        assert set(self.released).isdisjoint(blocks)
        self.owners.append(blocks)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if not self.owners:
            return
        blocks = self.owners.pop(data.draw(st.integers(0, len(self.owners) - 1)))
        self.pool.release(blocks)
        left = self.references()
        self.released += [block for block in reversed(blocks) if not left[block] and block in self.findable.values()]

    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        if self.owners:
            blocks = data.draw(st.sampled_from(self.owners))
            self.pool.acquire(blocks)
            self.owners.append(list(blocks))

    @rule(data=st.data(), key=st.sampled_from(KEYS))
    def publish(self, data: st.DataObject, key: bytes) -> None:
        unpublished = sorted(set(self.references()) - set(self.findable.values()))
        if unpublished:
            block = data.draw(st.sampled_from(unpublished))
            self.pool.publish(block, key)
            self.findable.setdefault(key, block)

    @rule(num_keys=st.integers(0, len(KEYS)))
    def match(self, num_keys: int) -> None:
        expected = []
        for key in KEYS[:num_keys]:
            if key not in self.findable:
                break
            expected.append(self.findable[key])
        hits = self.pool.stats.hits
        assert self.pool.match(KEYS[:num_keys]) == expected
        assert self.pool.stats.hits == hits + len(expected)
        self.owners.append(expected)
        self.released = [block for block in self.released if block not in expected]

    @invariant()
    def free_and_held_is_total(self) -> None:
        self.pool.check_integrity()
        references = self.references()
        assert self.pool.num_held == len(references)
        assert self.pool.num_free + self.pool.num_held == NUM_BLOCKS
        assert all(self.pool.num_references(block) == references[block] for block in range(NUM_BLOCKS))
        assert self.pool.num_cached == len(self.findable)
        assert self.pool.stats.evictions == self.num_evicted


TestBlockPool = BlockPoolMachine.TestCase
TestBlockPool.settings = settings(max_examples=120, stateful_step_count=40, derandomize=True, deadline=None)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(
    first=st.lists(st.integers(0, 2), max_size=12),
    second=st.lists(st.integers(0, 2), max_size=12),
    block_size=st.integers(1, 4),
)
def test_keys_are_equal_exactly_for_equal_prefixes(first: list[int], second: list[int], block_size: int) -> None:
    keys, other = block_keys(first, block_size), block_keys(second, block_size)
    assert len(keys) == len(first) // block_size
    for index, (key, other_key) in enumerate(zip(keys, other, strict=False)):
        end = (index + 1) * block_size
        assert (key == other_key) == (first[:end] == second[:end])


def test_keys_extend_block_by_block_and_differ_by_namespace() -> None:
    tokens = [5, 1 << 20, 7, 0, 3, 3]
    keys = block_keys(tokens, 2, b"tenant")
    assert keys[2] == next_block_key(keys[1], tokens[4:6])
    assert keys[0] == next_block_key(root_key(b"tenant"), tokens[:2])
    assert keys != block_keys(tokens, 2)


def test_least_recently_released_prefix_goes_first_and_from_its_end() -> None:
    pool = BlockPool(4, 2)
    first, second = block_keys([1, 2, 3, 4], 2), block_keys([5, 6, 7, 8], 2)
    for keys in (first, second):
        blocks = pool.allocate(2)
        for block, key in zip(blocks, keys, strict=True):
            pool.publish(block, key)
        pool.release(blocks)
    pool.release(pool.match(first))  # now the second text is the older one
    pool.release(pool.allocate(1))
    assert len(pool.match(second)) == 1
    assert len(pool.match(first)) == 2


def test_releasing_a_free_block_is_caught() -> None:
    pool = BlockPool(2, 1)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(AssertionError):
        pool.release(blocks)
