"""A slice of `make exactness`: both services over real gRPC against plain decoding, token for token."""

import asyncio
import contextlib
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from grammar_support import compiler
from numpy.typing import NDArray

from benchmarks.cut_proxy import CutProxy, CutSettings
from benchmarks.exactness.cases import Answer, Case, make_cases
from benchmarks.exactness.cells import Cell, grid
from benchmarks.exactness.differences import Dtype, Judge
from benchmarks.exactness.kept_compiler import KeptCompiler
from benchmarks.exactness.parameters import PARAMETERS, Requests
from benchmarks.exactness.run import CellResult, Options, plain_answers, run_cell
from specedge.model.embedded import resolve_model
from specedge.model.engines import Engine
from specedge.node_store import IntArray
from specedge.reference_sampler import reference_scores
from specedge.sampling import SamplingParams
from specedge.tokenizer import load_tokenizer
from specedge_verifier import packing
from specedge_verifier.draft_trees import DraftTrees
from specedge_verifier.session import Session
from specedge_verifier.target_model import TargetModel

EOS_ID = 2
NUM_PROMPTS = 14
MAX_TOKENS = 36
TARGET = resolve_model("demo", "target")
PLAIN = Options(compiler=KeptCompiler(compiler()))

CELLS = (
    "T0 mixed none x8 roomy cut",
    "T0 mixed random x1 tight cut",
    "T0.7 mixed demo x1 roomy steady",
    "T0.7 mixed random x8 tight steady",
    "T1 mixed wrong x1 tight steady",
    "T1 mixed demo x8 tight cut",
    "T0 mixed lookup x8 tight cut",
    "T0.7 mixed both x8 roomy cut",
    "T0 mixed server x8 tight steady",
    "T0 penalties random x8 tight cut",
    "T0.7 penalties both x1 roomy steady",
    "T0 grammar both x8 tight cut",
    "T0.7 grammar lookup x8 tight cut",
    "T1 grammar demo x1 roomy steady",
    "T1 grammar server x8 tight cut",
)


pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def judge(options: Options = PLAIN) -> Judge:
    return Judge(TARGET, options.device, options.engine, options.dtype, (EOS_ID,))


@cache
def cases_and_answers(
    temperature: float, requests: Requests, options: Options = PLAIN
) -> tuple[list[Case], list[Answer]]:
    cases = make_cases(load_tokenizer(TARGET), EOS_ID, temperature, NUM_PROMPTS, MAX_TOKENS, requests)
    return cases, asyncio.run(plain_answers(cases, options, progress=lambda: None))


@cache
def result_of(name: str) -> CellResult:
    (cell,) = grid(name)
    return run(cell)


def run(cell: Cell, options: Options = PLAIN) -> CellResult:
    cases, expected = cases_and_answers(cell.temperature, cell.requests, options)
    return asyncio.run(run_cell(cell, cases, expected, judge(options), options, progress=lambda: None))


@pytest.mark.parametrize("name", CELLS)
def test_speculation_changes_no_token(name: str) -> None:
    result = result_of(name)
    assert result.failures == []
    assert len(result.differences) <= 1, "even near-ties are rare in float32"


@pytest.mark.parametrize("engine", ["auto", "lean", "transformers"])
def test_speculation_changes_no_token_in_bfloat16(engine: Engine) -> None:
    """Rows are the same bits in every batch, so there are not even near-ties."""
    (cell,) = grid("T0.7 mixed random x8 roomy steady")
    result = run(cell, Options(engine=engine, dtype="bfloat16"))
    assert result.failures == []
    assert result.num_equal == NUM_PROMPTS
    assert result.num_accepted > 20


def test_the_cells_together_saw_what_they_are_for() -> None:
    """How often a session is preempted or a stream broken is up to chance in one cell, not in all of them."""
    results = [result_of(name) for name in CELLS]
    assert sum(result.num_preemptions for result in results) > 10
    assert sum(result.num_resumed for result in results) > 50
    assert sum(result.num_accepted for result in results) > 100
    assert all(result.num_nodes for result in results if result.cell.drafter != "none")
    for requests in ("penalties", "grammar"):
        some = [result for result in results if result.cell.requests == requests]
        assert all(result.num_accepted for result in some), "drafts were accepted in every cell"
    assert all(result.num_ended for result in results if result.cell.requests == "grammar")
    assert all(result.num_reconnects == 0 for result in results if result.cell.network == "steady")


def test_keys_and_values_that_stay_where_rejected_nodes_were_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison is able to fail: here accepted tokens' keys and values are not moved to their place."""
    monkeypatch.setattr(TargetModel, "move_kv", lambda self, source_slots, target_slots: None)
    (cell,) = grid("T0.7 mixed random x8 roomy steady")
    result = run(cell)
    assert result.num_wrong > 0
    assert f"{result.num_wrong} answers are wrong" in result.problems


def no_paths(trees: DraftTrees, index: int) -> list[list[int]]:
    return [[] for _ in range(1 + int(trees.sizes[index]))]


def roots_mask(session: Session, positions: IntArray, trees: DraftTrees, index: int) -> NDArray[np.int32]:
    assert session.grammar is not None
    return session.grammar.masks([], []).repeat(1 + int(trees.sizes[index]), axis=0)


@pytest.mark.parametrize(
    ("requests", "name", "forgetful"),
    [("penalties", "tree_paths", no_paths), ("grammar", "allowed_tokens", roots_mask)],
)
def test_penalties_and_grammars_that_forget_the_drafts_before_a_node_are_noticed(
    monkeypatch: pytest.MonkeyPatch, requests: str, name: str, forgetful: object
) -> None:
    """What is right for the root of a tree is not for its nodes."""
    (cell,) = grid(f"T0 {requests} random x1 roomy steady")
    cases_and_answers(cell.temperature, cell.requests)
    monkeypatch.setattr(packing, name, forgetful)
    result = run(cell)
    assert result.num_wrong or any("allows no token here" in error for error in result.errors), result


async def test_the_proxy_forwards_until_a_connection_has_carried_its_bytes_and_then_cuts_it() -> None:
    echoes: list[asyncio.Task[None] | None] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        echoes.append(asyncio.current_task())
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            while data := await reader.read(1000):
                writer.write(data)

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    proxy = CutProxy(server.sockets[0].getsockname()[1], CutSettings(min_bytes=1001, max_bytes=1001, min_s=60), seed=0)
    port = await proxy.start()
    try:
        for num_cuts in (1, 2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                for _ in range(5):
                    writer.write(b"x" * 100)
                    assert await reader.readexactly(100) == b"x" * 100
                assert proxy.num_cuts == num_cuts - 1
                writer.write(b"xx")
                with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                    await reader.readexactly(2)
                assert proxy.num_cuts == num_cuts
            finally:
                writer.close()
    finally:
        await proxy.stop()
        server.close()
        await asyncio.wait(echoes)


def test_the_grid_has_every_combination_once() -> None:
    cells = grid()
    assert len(cells) == len({cell.name for cell in cells}) == 3 * 7 * 2 * 2 * 2 + 2 * 3 * 6 * 2
    assert len(grid("T1 mixed demo,random x8")) == 2 * 2 * 2
    assert {(cell.temperature, cell.drafter) for cell in grid("grammar")} == {
        (cell.temperature, cell.drafter) for cell in grid("mixed") if cell.drafter != "none"
    }
    with pytest.raises(ValueError, match="no cell is called x9; the words are"):
        grid("T1 x9")


def test_every_request_of_a_special_cell_is_of_its_kind() -> None:
    stops = (5, 6, 7)
    assert all(params.has_penalties for params in PARAMETERS["penalties"](stops, EOS_ID))
    grammars = [params.grammar for params in PARAMETERS["grammar"](stops, EOS_ID)]
    assert {grammar.kind for grammar in grammars if grammar} >= {
        "json_object",
        "json_schema",
        "regex",
        "choice",
        "ebnf",
    }
    assert None not in grammars


PROMPT = (1, 483, 201, 2523, 408, 261, 832)


def plain_logits() -> np.ndarray:
    return judge().plain_logits(PROMPT)


def compared(sampling: SamplingParams, expected: int, actual: int, options: Options = PLAIN) -> str:
    case = Case(0, PROMPT, sampling)
    difference = judge(options).compare("cell", case, Answer((expected,), "length"), Answer((actual,), "length"))
    assert difference is not None and difference.position == len(PROMPT)
    return difference.verdict


def test_only_tokens_that_the_target_hardly_tells_apart_are_a_near_tie() -> None:
    logits = plain_logits()
    best, second = np.argsort(-logits)[:2].tolist()
    gap = float(logits[best] - logits[second])
    assert gap > 0.01
    assert compared(SamplingParams(temperature=0.0), best, second) == "wrong"
    for missing, verdict in ((1e-4, "near-tie"), (-1e-4, "near-tie"), (5e-3, "wrong")):
        bias = ((second, gap - missing),)
        assert compared(SamplingParams(temperature=0.0, logit_bias=bias), best, second) == verdict


@pytest.mark.parametrize(("dtype", "near", "far"), [("float32", 8e-4, 2e-3), ("bfloat16", 0.15, 0.3)])
def test_how_close_a_tie_is_depends_on_the_number_format(dtype: Dtype, near: float, far: float) -> None:
    options = Options(dtype=dtype)
    logits = judge(options).plain_logits(PROMPT)
    best, second = np.argsort(-logits)[:2].tolist()
    for missing, verdict in ((near, "near-tie"), (far, "wrong")):
        bias = ((second, float(logits[best] - logits[second]) - missing),)
        assert compared(SamplingParams(temperature=0.0, logit_bias=bias), best, second, options) == verdict


def test_a_difference_names_request_position_tokens_and_gaps() -> None:
    logits = plain_logits()
    best, second = np.argsort(-logits)[:2].tolist()
    gap = float(logits[best] - logits[second])
    case = Case(3, PROMPT, SamplingParams(temperature=0.0, seed=77, logit_bias=((second, 0.25),)))
    difference = judge().compare("T0", case, Answer((best,), "length"), Answer((second,), "length"))
    assert difference is not None
    assert difference.logit_gap == pytest.approx(gap)
    assert difference.score_gap == pytest.approx(gap - 0.25)
    assert str(difference) == (
        f"wrong: cell 'T0', prompt 3, seed 77, position {len(PROMPT)}: expected token {best}, got {second}; "
        f"the target's own logits differ by {gap:.3g}, its scores by {gap - 0.25:.3g}"
    )


def test_a_token_that_a_filter_drops_by_a_hair_is_a_near_tie() -> None:
    """With min_p the best token by noise may be one that another order of adding drops."""
    logits = plain_logits()
    order = np.argsort(-logits)
    token = int(order[4])
    edge = float(np.exp(logits[token] - logits[order[0]]))

    def chosen(min_p: float, seed: int) -> int:
        params = SamplingParams(min_p=min_p, seed=seed)
        return int(reference_scores(logits, params, prompt_ids=PROMPT, generated_ids=(), eos_ids=()).argmax())

    inside, outside = edge * (1 - 1e-4), edge * (1 + 1e-4)
    seed = next(s for s in range(2000) if chosen(inside, s) == token)
    other = chosen(outside, seed)
    assert other != token
    assert compared(SamplingParams(min_p=inside, seed=seed), token, other) == "near-tie"
    assert compared(SamplingParams(min_p=outside, seed=seed), other, token) == "near-tie"
    assert compared(SamplingParams(min_p=edge * 1.1, seed=seed), other, token) == "wrong"


def test_a_token_at_the_edge_of_the_nucleus_is_a_near_tie() -> None:
    logits = plain_logits()
    probabilities = np.sort(np.exp(logits.astype(np.float64) - logits.max()))[::-1]
    edge = float(probabilities[:5].sum() / probabilities.sum())  # the sixth token is just outside, or just inside

    def chosen(top_p: float, seed: int) -> int:
        params = SamplingParams(top_p=top_p, seed=seed)
        return int(reference_scores(logits, params, prompt_ids=PROMPT, generated_ids=(), eos_ids=()).argmax())

    seed = next(s for s in range(2000) if chosen(edge - 1e-5, s) != chosen(edge + 1e-5, s))
    outside, inside = chosen(edge - 1e-5, seed), chosen(edge + 1e-5, seed)
    assert compared(SamplingParams(top_p=edge + 1e-5, seed=seed), inside, outside) == "near-tie"
    assert compared(SamplingParams(top_p=edge - 1e-5, seed=seed), outside, inside) == "near-tie"
    assert compared(SamplingParams(top_p=edge - 1e-2, seed=seed), outside, inside) == "wrong"


def test_an_answer_that_ends_elsewhere_is_wrong() -> None:
    case = Case(3, PROMPT, SamplingParams(max_tokens=3))
    whole = Answer((5, 6, 7), "length")
    for other in (Answer((5, 6), "stop"), Answer((5, 6, 7), "stop"), Answer((5, 6, 7, 8), "length")):
        difference = judge().compare("cell", case, whole, other)
        assert difference is not None and difference.verdict == "wrong"
    assert judge().compare("cell", case, whole, replace(whole)) is None
