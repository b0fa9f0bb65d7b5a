"""The bench's pair that is all arithmetic."""

import pytest

from specedge.model.batch import chain
from specedge.model.embedded import EMBEDDED_NAME, resolve_model
from specedge.model.loader import load_model
from specedge_bench.curves import straight_curve
from specedge_bench.pace.modelled_pair import AGREEMENT, ModelledDraft, ModelledTarget


def test_modelled_drafts_agree_as_often_as_they_claim() -> None:
    model = load_model(resolve_model(EMBEDDED_NAME, "draft"), "cpu", "auto")
    target, draft = (kind(model, 4096, curve=straight_curve("0.01ms")) for kind in (ModelledTarget, ModelledDraft))
    batch = chain(2000)
    chosen = target.compute(batch).argmax(-1)
    claims, choices = draft.compute(batch).log_softmax(-1).topk(len(AGREEMENT))

    assert claims[0].exp().tolist() == pytest.approx(AGREEMENT, abs=1e-4)
    is_rank = choices == chosen[:, None]
    assert is_rank.float().mean(0).tolist() == pytest.approx(AGREEMENT, abs=0.025)
    assert len(chosen.unique()) > 1000
