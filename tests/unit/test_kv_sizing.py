"""How many KV blocks are allocated, alone and beside a draft model on the same device."""

from typing import Any

import pytest
import torch

from specedge.errors import ModelLoadError
from specedge_verifier import kv_sizing
from specedge_verifier.kv_sizing import DraftKV, choose_num_blocks

# 2 layers x 1 KV head of 32, keys and values of 4 bytes each: 512 bytes a token, 8 KiB a block of 16.
BYTES_PER_TOKEN = 512
BLOCK_BYTES = 8192


def choose(free_blocks: int, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> int:
    monkeypatch.setattr(kv_sizing, "free_bytes", lambda device: 2 * free_blocks * BLOCK_BYTES)
    settings: dict[str, Any] = {
        "bytes_per_token": BYTES_PER_TOKEN,
        "device": torch.device("cpu"),
        "block_size": 16,
        "max_len": 100,
        "max_batch_size": 8,
        "max_tree_nodes": 16,
        "num_kv_blocks": None,
        "memory_fraction": 0.5,
    }
    return choose_num_blocks(**settings | changes)


def test_enough_memory_gives_every_session_its_longest_text_and_a_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(1000, monkeypatch) == 8 * 8  # 100 + 1 + 16 tokens are 8 blocks


def test_the_fraction_of_free_memory_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(20, monkeypatch) == 20


def test_a_draft_model_takes_its_share_of_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(30, monkeypatch, draft=DraftKV(256, None)) == 20


def test_a_draft_cache_of_fixed_size_is_taken_off_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(30, monkeypatch, draft=DraftKV(256, num_slots=320)) == 20


def test_graphs_are_left_their_room(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(30, monkeypatch, graph_bytes=20 * BLOCK_BYTES) == 20


MIB_OF_BLOCKS = 2**20 // BLOCK_BYTES  # one session needs 7 blocks, so 14 free ones at half of the free memory


@pytest.mark.parametrize(
    ("free_blocks", "changes", "message"),
    [
        (6, {}, r"max_len 100 need 1 MiB of free .* has 1 MiB free: 1 MiB are short; lower max_len, raise kv_memory_f"),
        (
            6,
            {"graph_bytes": 3 * 2**20},
            r"need 4 MiB .*\(of which 3 MiB graph_memory_mib\), and beside the weights cpu has 1 MiB free: 4 MiB are "
            r"short; lower max_len or graph_memory_mib, raise kv_memory_fraction or take a smaller dtype",
        ),
        (
            30,
            {"draft": DraftKV(256, num_slots=16 * 1024)},
            r"num_draft_slots\), .*; lower max_len or num_draft_slots, ",
        ),
        (2, {"num_kv_blocks": 10 * MIB_OF_BLOCKS}, r"num_kv_blocks 1280 of 16 tokens need 10 MiB, .*10 MiB are short"),
        (2, {"num_kv_blocks": 7, "graph_bytes": 2**20}, r"lower num_kv_blocks or graph_memory_mib or take a smaller"),
        (2, {"num_kv_blocks": 6}, r"num_kv_blocks 6 of 16 tokens cannot hold one session .*: at least 7 are needed"),
    ],
)
def test_no_room_says_how_much_is_short_and_what_helps(
    free_blocks: int, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelLoadError, match=message):
        choose(free_blocks, monkeypatch, **changes)


def test_the_smallest_pool_fits_just(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(7, monkeypatch) == 7
    assert choose(4, monkeypatch, num_kv_blocks=8) == 8
