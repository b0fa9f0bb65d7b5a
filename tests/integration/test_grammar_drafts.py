"""Drafts under a grammar, step by step in one thread: what is accepted does not depend on who is faster."""

import pytest
import torch
from grammar_support import EOS, compiler, tokenizer
from structured_support import request

from edge_agent.drafter import Drafter
from edge_agent.loading import load as load_edge
from edge_agent.metrics import EdgeMetrics
from specedge.drafting.draft_session import DraftRequest
from specedge.errors import InvalidRequest
from specedge.wire.messages import OpenSession, Verdict
from specedge_cli.processes import load_edge_settings, load_verifier_settings
from specedge_verifier.core import EngineCore
from specedge_verifier.loading import load as load_verifier

PROMPT = "Tell me a tale about a fox who wanted to see the sea."
SCHEMA = {"type": "object", "properties": {"title": {"type": "string"}, "moral": {"type": "string"}}}
SCHEMA |= {"required": ["title", "moral"], "additionalProperties": False}
DEPTH = 6  # draft steps before each verification


@pytest.fixture(scope="module")
def core() -> EngineCore:
    return load_verifier(load_verifier_settings(["--num-threads", "1"])).core


@pytest.fixture(scope="module")
def drafter() -> Drafter:
    models = load_edge(load_edge_settings(["--num-threads", "1"]), EdgeMetrics())
    assert models.drafter is not None
    return models.drafter


class Run:
    """One answer: `drafter` and `core` take turns.

    Attributes:
        verdicts: what was committed.
        error: why the answer failed.
    """

    def __init__(self, core: EngineCore, drafter: Drafter, handle: int, *, is_filtered: bool, **wanted: object) -> None:
        self.verdicts: list[Verdict] = []
        self.error: Exception | None = None
        asked = request(PROMPT, **wanted)  # type: ignore[arg-type]
        drafts, params = drafter._core, asked.sampling
        assert params.grammar is not None
        grammar = compiler().compile(params.grammar)
        opening = OpenSession("r", asked.prompt_ids, (), params, "", f"drafter-{handle}")
        core.open(handle, opening, grammar.start())
        drafts.open(handle, DraftRequest("r", asked.prompt_ids, params, (EOS,), 64))
        if is_filtered:
            drafts.bind(handle, grammar.start(), 0)
        while self.error is None and not (self.verdicts and self.verdicts[-1].finish_reason):
            self._draft(core, drafter, handle)
            for _, event in core.step().events:
                if isinstance(event, Verdict):
                    self.verdicts.append(event)
                    drafts.verdict(handle, event.token_ids)
                elif isinstance(event, Exception):
                    self.error = event
        drafts.close(handle)
        drafts.check_integrity()

    def _draft(self, core: EngineCore, drafter: Drafter, handle: int) -> None:
        for _ in range(DEPTH):
            step = drafter._core.schedule()
            if step is None:
                return
            drafter._core.settle(step, drafter._model.children(step))
            for _, _, nodes in drafter._core.take_messages():
                core.draft(handle, nodes)

    @property
    def token_ids(self) -> list[int]:
        return [token for verdict in self.verdicts for token in verdict.token_ids]

    @property
    def num_accepted(self) -> int:
        return sum(verdict.num_accepted for verdict in self.verdicts)


@torch.inference_mode()
def test_drafts_that_follow_the_grammar_are_accepted_inside_json_strings(core: EngineCore, drafter: Drafter) -> None:
    wanted = {"kind": "json_schema", "source": SCHEMA, "temperature": 0.0, "max_tokens": 80}
    filtered = Run(core, drafter, 1, is_filtered=True, **wanted)
    plain = Run(core, drafter, 2, is_filtered=False, **wanted)
    assert filtered.token_ids == plain.token_ids
    assert filtered.num_accepted > plain.num_accepted
    num_inside, num_tokens = 0, 0
    for verdict in filtered.verdicts:
        text = tokenizer().decode(filtered.token_ids[:num_tokens])
        num_inside += verdict.num_accepted if text.count('"') % 2 else 0
        num_tokens += len(verdict.token_ids)
    assert num_inside > 0


@torch.inference_mode()
def test_an_answer_whose_grammar_leads_nowhere_fails_alone(core: EngineCore, drafter: Drafter) -> None:
    source = 'root ::= "Once upon" dead | "x"\ndead ::= [^\\u0000-\\U0010ffff]'
    run = Run(core, drafter, 3, is_filtered=True, kind="ebnf", source=source, temperature=0.0)
    assert isinstance(run.error, InvalidRequest) and run.error.param == "structured_outputs"
    assert "allows no token here" in str(run.error)
    assert tokenizer().decode(run.token_ids) == "Once upon"
    assert core.num_sessions == 0
    core.scheduler.pool.check_integrity()


@torch.inference_mode()
def test_an_answer_whose_grammar_is_too_slow_fails_alone(
    core: EngineCore, drafter: Drafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specedge.grammar.state.MAX_MEAN_ROW_S", 0.0)
    run = Run(core, drafter, 4, is_filtered=True, kind="regex", source="[a-z ]*", temperature=0.0, max_tokens=300)
    assert isinstance(run.error, InvalidRequest)
    assert "takes too long" in str(run.error)
    assert core.num_sessions == 0
