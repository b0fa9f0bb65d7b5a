"""Loading a draft model for a target: slots and positions as told, and another tokenizer refused."""

import json
import shutil
from pathlib import Path

import pytest

from specedge.drafting.draft_session import DraftingSettings
from specedge.drafting.loading import load_draft
from specedge.drafting.settings import DrafterSettings
from specedge.errors import ModelLoadError
from specedge.model.embedded import resolve_model
from specedge.tokenizer import load_tokenizer

TARGET, DRAFT = resolve_model("demo", "target"), resolve_model("demo", "draft")


def test_slots_are_the_settings_and_positions_the_models() -> None:
    settings = DrafterSettings(device="cpu", num_draft_slots=64)
    runner, drafting = load_draft(settings, DraftingSettings(mode="off"), load_tokenizer(TARGET))

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
        load_draft(DrafterSettings(draft_model=str(folder)), DraftingSettings(), load_tokenizer(TARGET))
    assert str(folder) in str(caught.value)
