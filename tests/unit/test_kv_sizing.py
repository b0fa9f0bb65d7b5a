"""How many KV blocks are allocated, alone and beside a draft model on the same device."""

import pytest
import torch
from transformers import Qwen3Config

from specedge.errors import ModelLoadError
from specedge_verifier import kv_sizing
from specedge_verifier.kv_sizing import DraftKV, choose_num_blocks

# 2 layers x 1 KV head of 32, keys and values of 4 bytes each: 512 bytes a token, 8 KiB a block of 16.
CONFIG = Qwen3Config(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32, hidden_size=64)
BLOCK_BYTES = 8192


def choose(free_blocks: int, monkeypatch: pytest.MonkeyPatch, draft: DraftKV | None = None) -> int:
    monkeypatch.setattr(kv_sizing, "free_bytes", lambda device: 2 * free_blocks * BLOCK_BYTES)
    return choose_num_blocks(
        CONFIG,
        dtype=torch.float32,
        device=torch.device("cpu"),
        block_size=16,
        max_len=100,
        max_batch_size=8,
        max_tree_nodes=16,
        num_kv_blocks=None,
        memory_fraction=0.5,
        draft=draft,
    )


def test_enough_memory_gives_every_session_its_longest_text_and_a_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(1000, monkeypatch) == 8 * 8  # 100 + 1 + 16 tokens are 8 blocks


def test_the_fraction_of_free_memory_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(20, monkeypatch) == 20


def test_a_draft_model_takes_its_share_of_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(30, monkeypatch, DraftKV(256, None)) == 20


def test_a_draft_cache_of_fixed_size_is_taken_off_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(30, monkeypatch, DraftKV(256, num_slots=320)) == 20


def test_no_room_for_one_session_says_how_much_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelLoadError, match="max_len 100 need 0 MiB more"):
        choose(6, monkeypatch)
    with pytest.raises(ModelLoadError, match="kv_memory_fraction"):
        choose(30, monkeypatch, DraftKV(256, num_slots=100_000))
