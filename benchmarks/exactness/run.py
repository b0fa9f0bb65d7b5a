"""Runs a cell: every case once, a number of them at a time, and holds the answers to the expected ones."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.cut_proxy import CutSettings
from benchmarks.exactness.cases import Answer, Case
from benchmarks.exactness.cells import Cell
from benchmarks.exactness.deployment import Deployment, deployed
from benchmarks.exactness.differences import Difference, Dtype, Judge
from benchmarks.exactness.draft_sources import ScriptedDrafts, grow_at_random, grow_wrong
from benchmarks.exactness.kept_compiler import KeptCompiler
from edge_agent.draft_grammars import MakeGrammars
from edge_agent.draft_source import DraftSource, NullDraftSource
from edge_agent.generation import GenerationRequest, GenerationService
from edge_agent.loading import load as load_edge
from edge_agent.metrics import EdgeMetrics
from edge_agent.settings import EdgeSettings
from specedge.grammar.session_grammars import SessionGrammars
from specedge.model.engines import Engine, make_runner
from specedge.sampling import SamplingParams
from specedge_bench.pace.pace import Pace
from specedge_bench.pace.process import runners
from specedge_verifier.settings import VerifierSettings

BLOCK_SIZE = 4
NUM_ROOMY_SESSIONS = 12
_FILLER_SLACK = 16  # tokens that a filler leaves free beside the session it will preempt
_FILLER_TOKENS = 22

_PACE = Pace("6ms", "0.1ms")
"""Of a target with a draft model beside it, which is hardly smaller: without, the target would not wait for drafts."""

Progress = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What all cells have in common; engine and dtype are the target's."""

    device: str = "cpu"
    engine: Engine = "auto"
    dtype: Dtype = "float32"
    num_threads: int = 1
    seed: int = 1
    compiler: KeptCompiler | None = None  # None: every service starts its own

    @property
    def grammars(self) -> SessionGrammars | None:
        """For one service."""
        return None if self.compiler is None else self.compiler.for_a_service()


@dataclass(slots=True)
class CellResult:
    """What a cell brought."""

    cell: Cell
    num_prompts: int = 0
    num_equal: int = 0
    num_ended: int = 0  # by a stop token, an end of sequence or the end of a grammar
    num_tokens: int = 0
    num_verifications: int = 0
    num_nodes: int = 0  # verified
    num_accepted: int = 0
    num_preemptions: int = 0
    num_reconnects: int = 0
    num_resumed: int = 0  # tokens that were committed already when a stream was opened again
    seconds: float = 0.0
    differences: list[Difference] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def num_near_ties(self) -> int:
        return sum(difference.verdict == "near-tie" for difference in self.differences)

    @property
    def num_wrong(self) -> int:
        return len(self.differences) - self.num_near_ties

    @property
    def failures(self) -> list[str]:
        """Errors and wrong answers."""
        return self.errors + ([f"{self.num_wrong} answers are wrong"] if self.num_wrong else [])

    @property
    def gaps(self) -> list[str]:
        """What the cell is there for and did not happen; a cell with few prompts may have such a gap by chance."""
        cell, gaps = self.cell, []
        if cell.pool == "tight" and not self.num_preemptions:
            gaps.append("no session was preempted")
        if cell.network == "cut" and not self.num_resumed:
            gaps.append("no stream was broken in the middle of an answer")
        if cell.network == "steady" and self.num_reconnects:
            gaps.append(f"{self.num_reconnects} streams broke without being cut")
        if cell.drafter != "none" and not self.num_nodes:
            gaps.append("no draft node was verified")
        if (cell.drafter not in ("none", "wrong")) != (self.num_accepted > 0):
            gaps.append(f"{self.num_accepted} draft nodes were accepted")
        if cell.requests == "grammar" and not self.num_ended:
            gaps.append("no answer came to the end of its grammar")
        return gaps

    @property
    def problems(self) -> list[str]:
        """Why the cell does not show that speculation is exact."""
        return self.failures or self.gaps


async def plain_answers(cases: Sequence[Case], options: Options, progress: Progress) -> list[Answer]:
    """The expected answers: plain decoding, one session at a time, nothing in its way."""
    answers = []
    settings = _verifier_settings(cases, "roomy", options)
    async with deployed(settings, NullDraftSource(), grammars=options.grammars) as deployment:
        for case in cases:
            answers.append(await _answer(deployment.service, case, None))
            progress()
    return answers


async def run_cell(
    cell: Cell, cases: Sequence[Case], expected: Sequence[Answer], judge: Judge, options: Options, progress: Progress
) -> CellResult:
    """One cell: all cases, `cell.num_sessions` at a time."""
    result = CellResult(cell, num_prompts=len(cases))
    started_s = time.perf_counter()
    system: Literal["server-only", "specedge"] = "server-only" if cell.drafter == "server" else "specedge"
    settings = _verifier_settings(cases, cell.pool, options, system)
    paced = runners(_PACE, "verifier") if cell.drafter in ("demo", "both", "server") else make_runner
    cuts = _cuts(cell.num_sessions) if cell.network == "cut" else None
    with _errors_logged() as errors:
        try:
            async with (
                _draft_source(cell, cases, expected, options) as source,
                deployed(
                    settings, source, cuts, options.seed, grammars=options.grammars, make_runner=paced
                ) as deployment,
            ):
                await _answer_all(cell, zip(cases, expected, strict=True), deployment, judge, result, progress)
                result.num_preemptions = deployment.verifier.core.scheduler.num_preemptions
                result.num_reconnects = deployment.streams.num_broken
                result.num_resumed = deployment.streams.num_resumed_tokens
        except Exception as error:  # a cell that breaks down fails; the others still run
            errors += _descriptions(error)
    result.errors += errors
    result.seconds = time.perf_counter() - started_s
    return result


async def _answer_all(
    cell: Cell,
    remaining: Iterator[tuple[Case, Answer]],
    deployment: Deployment,
    judge: Judge,
    result: CellResult,
    progress: Progress,
) -> None:
    needs_filler = cell.pool == "tight" and cell.num_sessions == 1

    async def work() -> None:
        for case, expected in remaining:
            filler = _filler(case, deployment.settings) if needs_filler else None
            actual = await _answer(deployment.service, case, result, filler, _prediction(cell, case, expected))
            if difference := judge.compare(cell.name, case, expected, actual):
                result.differences.append(difference)
            else:
                result.num_equal += 1
            progress()

    async with asyncio.TaskGroup() as workers:
        for _ in range(cell.num_sessions):
            workers.create_task(work())


def _prediction(cell: Cell, case: Case, expected: Answer) -> tuple[int, ...]:
    """Half of the cases that look up are predicted: the right answer with every seventh token exchanged or missing."""
    if not cell.looks_up or case.index % 2:
        return ()
    tokens = [*expected.token_ids]
    tokens[::7] = tokens[1::7] + tokens[: len(tokens[::7]) - len(tokens[1::7])]
    return tuple(tokens if case.index % 4 else tokens[:10] + tokens[11:])


async def _answer(
    service: GenerationService,
    case: Case,
    result: CellResult | None,
    filler: GenerationRequest | None = None,
    prediction_ids: tuple[int, ...] = (),
) -> Answer:
    """One answer; a filler, if any, is being computed when it begins, and takes the blocks it needs to go on."""
    if filler is not None:
        async with service.generate(filler):
            return await _answer(service, case, result, None, prediction_ids)
    tokens: list[int] = []
    finish_reason = ""
    request = GenerationRequest(case.request_id, case.prompt_ids, case.sampling, prediction_ids=prediction_ids)
    async with service.generate(request) as bursts:
        async for burst in bursts:
            tokens += burst.token_ids
            if result is not None:
                result.num_tokens += len(burst.token_ids)
                result.num_verifications += 1
                result.num_nodes += burst.stats.num_nodes_verified
                result.num_accepted += burst.num_accepted
            finish_reason = burst.finish_reason
    if result is not None:
        result.num_ended += finish_reason == "stop"
    return Answer(tuple(tokens), finish_reason)


def _cuts(num_sessions: int) -> CutSettings:
    """All sessions share a connection: with more of them it carries more, in less time."""
    return CutSettings() if num_sessions == 1 else CutSettings(max_bytes=25_000, max_s=0.5)


def _filler(case: Case, settings: VerifierSettings) -> GenerationRequest | None:
    """A plain session of higher priority, so long that it soon needs the blocks of the case's; None if none fits."""
    assert settings.num_kv_blocks is not None and settings.max_len is not None
    num_slots = settings.num_kv_blocks * settings.block_size
    length = min(num_slots - len(case.prompt_ids) - _FILLER_SLACK, settings.max_len - _FILLER_TOKENS)
    if length < 1:
        return None
    prompt = (case.prompt_ids * (1 + length // len(case.prompt_ids)))[:length]
    sampling = SamplingParams(temperature=0.0, max_tokens=_FILLER_TOKENS, ignore_eos=True)
    return GenerationRequest(f"filler-{case.index}", prompt, sampling, speculate=False, priority=1)


def _verifier_settings(
    cases: Sequence[Case], pool: str, options: Options, system: Literal["server-only", "specedge"] = "specedge"
) -> VerifierSettings:
    """Small blocks, small steps and a small trie, so that edges are met; a tight pool just holds the longest case."""
    max_len = max(len(case.prompt_ids) + case.sampling.max_tokens for case in cases)
    num_blocks = -(-(max_len + 1) // BLOCK_SIZE)
    return VerifierSettings(
        system=system,
        device=options.device,
        engine=options.engine,
        dtype=options.dtype,
        num_threads=options.num_threads,
        max_len=max_len,
        block_size=BLOCK_SIZE,
        num_kv_blocks=num_blocks if pool == "tight" else NUM_ROOMY_SESSIONS * num_blocks,
        max_batch_size=16,
        max_num_batched_tokens=128,
        max_live_nodes=64,
        max_tree_nodes=32,
    )


@contextlib.asynccontextmanager
async def _draft_source(
    cell: Cell, cases: Sequence[Case], expected: Sequence[Answer], options: Options
) -> AsyncIterator[DraftSource]:
    if cell.drafter in ("none", "server"):
        yield NullDraftSource()
        return
    if cell.drafter in ("demo", "lookup", "both"):
        settings = EdgeSettings(
            device=options.device,
            num_threads=options.num_threads,
            draft_model=None if cell.drafter == "lookup" else "demo",
            lookup="on" if cell.looks_up else "off",
        )
        edge = load_edge(settings, EdgeMetrics(), make_grammars=_make_grammars(options))
        if edge.lookup is not None:
            yield edge.lookup
            edge.lookup.stop()
            return
        drafter = edge.drafter
        assert drafter is not None
        drafter.start()
        try:
            yield drafter
            assert drafter.is_alive, "the drafter's thread has died"
        finally:
            drafter.stop()
        drafter.check_integrity()
        return
    answers = {case.request_id: answer.token_ids for case, answer in zip(cases, expected, strict=True)}
    vocab_size = 1 + max(token for tokens in answers.values() for token in tokens)
    grow = grow_at_random if cell.drafter == "random" else grow_wrong
    yield ScriptedDrafts(cell.drafter, grow, answers, vocab_size, options.seed)


def _make_grammars(options: Options) -> MakeGrammars | None:
    compiler = options.compiler
    return None if compiler is None else lambda eos_ids: compiler.for_a_service()


def _descriptions(error: Exception) -> list[str]:
    if isinstance(error, ExceptionGroup):
        return [text for part in error.exceptions for text in _descriptions(part)]
    return [f"{type(error).__name__}: {error}"]


class _ErrorLog(logging.Handler):
    """Keeps what is logged as an error: answers survive refused drafts and dead threads, a cell does not."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(f"logged: {record.getMessage()}")


@contextlib.contextmanager
def _errors_logged() -> Iterator[list[str]]:
    messages: list[str] = []
    handler = _ErrorLog(messages)
    logging.getLogger().addHandler(handler)
    try:
        yield messages
    finally:
        logging.getLogger().removeHandler(handler)
