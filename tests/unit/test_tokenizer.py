"""Tokenizers loaded the short way are those that transformers would choose."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from specedge.model.embedded import resolve_model
from specedge.tokenizer import is_as_saved, load_tokenizer, tokenizer_fingerprint

TARGET = Path(resolve_model("demo", "target"))
TEXTS = (
    "",
    "A fox wanted to see the sea.",
    "  two  spaces, a tab\tand\n\nlines \n",
    "1234567890 3.14 1,000",
    "Füchse, 狐, лиса, 🦊🏽‍🌾, e\u0301",
    "<|im_start|>user\nhello<|im_end|> <|im_start|><|endoftext|> <|im_sta",
    "\x00\u200b\ufeff�",
)
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  What is 2 + 2?\n"}]


def folder_with(tmp_path: Path, model_type: str = "qwen3", **changes: object) -> Path:
    """A copy of the embedded target's tokenizer under another configuration; None removes a key."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copy(TARGET / name, folder)
    config = json.loads((TARGET / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    own = {**json.loads((TARGET / "tokenizer_config.json").read_text()), **changes}
    kept = {name: value for name, value in own.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
    return folder


def assert_same(folder: Path) -> None:
    own, other = load_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)
    assert type(own) is type(other)
    assert own.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
    assert tokenizer_fingerprint(own) == tokenizer_fingerprint(other)
    assert own.special_tokens_map == other.special_tokens_map and own.eos_token_id == other.eos_token_id
    assert len(own) == len(other) and own.all_special_tokens == other.all_special_tokens
    for text in TEXTS:
        for add_special_tokens in (False, True):
            ids = own(text, add_special_tokens=add_special_tokens)["input_ids"]
            assert ids == other(text, add_special_tokens=add_special_tokens)["input_ids"]
        for skip in (False, True):
            assert own.decode(ids, skip_special_tokens=skip) == other.decode(ids, skip_special_tokens=skip)
    for variables in (
        {"add_generation_prompt": True},
        {"continue_final_message": True},
        {"chat_template": "{{ eos_token }}"},
    ):
        arguments: Any = {"tokenize": False, **variables}
        assert own.apply_chat_template(CHAT, **arguments) == other.apply_chat_template(CHAT, **arguments)


CHANGES: list[dict[str, object]] = [
    {},
    {"extra_special_tokens": ["<|im_start|>", "<|new|>"]},
    {"bos_token": "<|im_start|>", "add_bos_token": True},
    {"eos_token": None, "pad_token": None},
    {"chat_template": "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"},
    {"clean_up_tokenization_spaces": True, "model_max_length": 5},
    {"added_tokens_decoder": {"4096": {"content": "<|more|>", "special": True}}},
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
def test_a_tokenizer_as_saved_is_the_one_transformers_chooses(
    tmp_path: Path, model_type: str, change: dict[str, object]
) -> None:
    folder = folder_with(tmp_path, model_type, **change)
    assert is_as_saved(folder)
    assert isinstance(load_tokenizer(str(folder)), PreTrainedTokenizerFast)
    assert_same(folder)


@pytest.mark.parametrize(
    ("model_type", "change"),
    [
        ("qwen2", {}),
        ("mistral", {}),
        ("qwen3", {"tokenizer_class": "Qwen2Tokenizer"}),
        ("qwen3", {"tokenizer_class": None}),
        ("llama", {"tokenizer_class": "PreTrainedTokenizerFast"}),
    ],
)
def test_every_other_tokenizer_is_left_to_transformers(
    tmp_path: Path, model_type: str, change: dict[str, object]
) -> None:
    folder = folder_with(tmp_path, model_type, **change)
    assert not is_as_saved(folder)
    assert_same(folder)


def test_a_tokenizer_of_its_own_code_is_left_to_transformers(tmp_path: Path) -> None:
    assert not is_as_saved(folder_with(tmp_path, auto_map={"AutoTokenizer": [None, "own.Tokenizer"]}))


def test_a_folder_without_a_model_is_left_to_transformers(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    (folder / "config.json").unlink()
    assert not is_as_saved(folder)
