"""A session's blocks: lookups are counted once, rejected nodes give their blocks back."""

from specedge.block_pool import BlockPool
from specedge_verifier.session_blocks import SessionBlocks


def test_a_lookup_counts_when_it_has_led_to_admission() -> None:
    pool = BlockPool(8, 4)
    first = SessionBlocks(pool)
    first.reserve(8)
    first.settle(range(8), 8)
    waiting = SessionBlocks(pool)
    for _ in range(5):
        assert waiting.match_prefix(range(13)) == 8
        waiting.withdraw()
    assert (pool.stats.queries, pool.stats.hits) == (0, 0)
    assert waiting.match_prefix(range(13)) == 8
    assert (pool.stats.queries, pool.stats.hits) == (3, 2)


def test_settle_keeps_the_root_and_publishes_what_is_full() -> None:
    pool = BlockPool(8, 4)
    blocks = SessionBlocks(pool)
    blocks.reserve(18)
    blocks.settle(range(7), 6)
    assert (blocks.num_slots, pool.num_cached) == (8, 1)
    blocks.settle(range(9), 8)  # the root's slot would be the first of a block that is not held
    assert (blocks.num_slots, pool.num_cached) == (8, 2)
    blocks.reserve(9)
    assert blocks.slots(0, 12).tolist() == [*range(8), *range(8, 12)]
    assert pool.num_held == 3
    pool.check_integrity()
