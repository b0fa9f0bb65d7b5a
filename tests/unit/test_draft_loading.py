"""Loading a draft model for a target: slots and positions as told, and another tokenizer refused."""

import json
import shutil
from pathlib import Path

import pytest

from specedge.drafting.draft_session import DraftingSettings
from specedge.drafting.loading import draft_runner, load_draft_model
from specedge.drafting.settings import DrafterSettings
from specedge.errors import ModelLoadError
from specedge.model.embedded import resolve_model
from specedge.tokenizer import load_tokenizer

TARGET, DRAFT = resolve_model("demo", "target"), resolve_model("demo", "draft")


def test_slots_are_as_told_and_positions_the_models() -> None:
    model = load_draft_model(DrafterSettings(device="cpu"), load_tokenizer(TARGET))
    runner, drafting = draft_runner(model, DraftingSettings(mode="off"), 64)

    assert runner.num_slots == 64
    assert drafting.mode == "off"
    assert drafting.max_positions == json.loads((Path(DRAFT) / "config.json").read_text())["max_position_embeddings"]


def test_another_tokenizer_is_refused_by_both_names(tmp_path: Path) -> None:
    folder = tmp_path / "stranger"
    shutil.copytree(DRAFT, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"].pop()
    (folder / "tokenizer.json").write_text(json.dumps(content))

    with pytest.raises(ModelLoadError, match=r"target_model demo \(.*draft_model .*stranger .*must share") as caught:
        load_draft_model(DrafterSettings(draft_model=str(folder)), load_tokenizer(TARGET))
    assert str(folder) in str(caught.value)
