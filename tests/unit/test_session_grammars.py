"""Grammars of sessions: made beside the service, and refused by name where they cannot be."""

import pytest
from edge_harness import edge_at, wanted
from fakes import FakeEngine, serving
from grammar_support import compiler, ids, spec

from specedge.errors import CapacityExceeded, InvalidRequest, ModelLoadError
from specedge.grammar import session_grammars
from specedge.grammar.compile_client import CompileClient
from specedge.grammar.session_grammars import SessionGrammars
from specedge.sampling import SamplingParams

CHOICE = spec("choice", ["ab", "ac"])
PARAMS = SamplingParams(grammar=CHOICE)


def test_a_state_stands_at_the_committed_tokens() -> None:
    grammars = SessionGrammars(compiler)
    state = grammars.begin(CHOICE, PARAMS, ids("a")).result()
    assert state.allows([], ids("b")).all() and not state.allows([], ids("a")).any()
    for committed in ([*ids("a"), 0], [*ids("ab"), 2]):
        with pytest.raises(InvalidRequest, match="cannot be continued") as caught:
            grammars.begin(CHOICE, PARAMS, committed).result()
        assert caught.value.param == "committed_ids"


def test_without_the_package_grammars_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_grammars, "has_grammars", lambda: False)
    grammars = SessionGrammars(compiler)
    with pytest.raises(InvalidRequest, match="xgrammar and llguidance") as caught:
        grammars.begin(CHOICE, PARAMS).result()
    assert caught.value.param == "structured_outputs"
    grammars.close()


def test_a_tokenizer_that_grammars_cannot_read_is_refused_once_and_for_all() -> None:
    num_made = 0

    def fail() -> None:
        nonlocal num_made
        num_made += 1
        raise ModelLoadError("no vocabulary")

    grammars = SessionGrammars(fail)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="not served here: no vocabulary"):
            grammars.begin(CHOICE, PARAMS).result()
    assert num_made == 1
    grammars.close()


def test_a_closed_compiler_starts_no_process_again() -> None:
    client = CompileClient("", 1.0)
    client.close()
    with pytest.raises(CapacityExceeded, match="shutting down"):
        client.start()


async def test_a_verifier_without_the_capability_is_not_asked() -> None:
    engine = FakeEngine()
    async with serving(engine) as server, edge_at(server.port) as edge:
        request = wanted(5, sampling=PARAMS)
        with pytest.raises(InvalidRequest, match="cannot make answers follow a grammar") as caught:
            async with edge.service.generate(request):
                pass
    assert caught.value.param == "structured_outputs"
    assert not engine.opened
