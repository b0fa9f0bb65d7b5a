"""Rows of a run, condensed to one summary per cell; what every number means is in `docs/benchmarking.md`."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from specedge_bench.cost import Cost, Usage, cost, drafts_on_edge
from specedge_bench.records import CellRecord, RequestRecord, StepRecord
from specedge_bench.run_folder import Run
from specedge_bench.statistics import Interval, Percentiles, mean_interval, percentiles


@dataclass(frozen=True, slots=True)
class Slo:
    """What a user is promised: a request meets it if its TTFT and its TPOT are both within these limits."""

    ttft_s: float = 1.0
    itl_s: float = 0.1

    def is_met(self, request: RequestRecord) -> bool:
        # A one-token answer has no pause between tokens that could break the promise.
        return request.ttft_s <= self.ttft_s and not request.tpot_s > self.itl_s


@dataclass(frozen=True, slots=True)
class Latencies:
    """Seconds over all answered requests of a cell."""

    ttft: Percentiles
    itl_token: Percentiles
    itl_burst: Percentiles
    tpot: Percentiles
    e2e: Percentiles


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Milliseconds over all verifier steps of a cell."""

    total: Percentiles
    queue: Percentiles
    mean_schedule: float
    mean_forward: float
    mean_sample: float
    mean_settle: float


@dataclass(frozen=True, slots=True)
class Speculation:
    """What drafting did in a cell; NaN where there is nothing to divide by."""

    tokens_per_verification: float
    accepted_per_tree: float
    acceptance_by_depth: tuple[float, ...]
    """Entry d: share of verified trees that accepted more than d draft tokens."""
    num_nodes_verified: int
    num_drafted: int
    wasted: dict[str, int]
    guess_hit_rate: float
    draft_steps_per_token: float
    rows_per_draft_step: float
    sessions_per_draft_step: float
    bytes_up_per_verification: float
    bytes_down_per_verification: float
    wire_bytes_up_per_verification: float
    wire_bytes_down_per_verification: float


@dataclass(frozen=True, slots=True)
class CellSummary:
    """One cell over all its repetitions."""

    cell: str
    system: str
    network: str
    load: str
    num_users: int
    num_edges: int
    num_repetitions: int
    """Complete ones; throughput, cost and counters come from these alone."""
    num_interrupted: int
    num_ok: int
    num_failed: int
    num_tokens: int
    """Of answered requests in complete repetitions."""
    latencies: Latencies
    throughput: Interval
    """Tokens per second; the interval is over repetitions."""
    goodput: float
    """Tokens per second of requests that met the SLO."""
    slo_share: float
    """Share of all requests, failed ones included, that met the SLO."""
    speculation: Speculation
    verifier_busy_s_per_token: float
    draft_busy_s_per_token: float
    steps: StepTimes
    rtt_ms_configured: float
    rtt_ms_measured: float
    num_preemptions: int
    prefix_hit_rate: float
    cost: Cost


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One prompt and seed that were answered with different texts."""

    prompt: str
    seed: int
    cells_by_digest: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Identity:
    """Whether all systems gave the same answers."""

    num_compared: int
    """Pairs of prompt and seed that at least two systems answered."""
    mismatches: tuple[Mismatch, ...]


def summarise(run: Run, slo: Slo) -> list[CellSummary]:
    """One summary per cell, in the order in which the cells were first run.

    The costs are NaN where the run has no price for a GPU that a cell needs.
    """
    requests: dict[str, list[RequestRecord]] = defaultdict(list)
    cells: dict[str, list[CellRecord]] = defaultdict(list)
    steps: dict[str, list[StepRecord]] = defaultdict(list)
    for request in run.requests:
        requests[request.cell].append(request)
    for cell in run.cells:
        cells[cell.cell].append(cell)
    for step in run.steps:
        steps[step.cell].append(step)
    verifier_price = run.info.prices.get(run.info.verifier_gpu, math.nan)
    edge_price = run.info.prices.get(run.info.edge_gpu, math.nan)
    names = dict.fromkeys([*requests, *cells])
    return [
        _summarise_cell(requests[name], cells[name], steps[name], slo, verifier_price, edge_price) for name in names
    ]


def usage(cells: Sequence[CellRecord], num_tokens: int) -> Usage:
    """What these repetitions of one cell reserved and used."""
    first = cells[0]
    is_shared = first.draft_on_verifier
    draft_busy_s = math.fsum(cell.draft_busy_s for cell in cells)
    return Usage(
        num_tokens=num_tokens,
        wall_s=math.fsum(cell.wall_s for cell in cells),
        verifier_busy_s=math.fsum(cell.verifier_busy_s for cell in cells) + (draft_busy_s if is_shared else 0.0),
        edge_busy_s=0.0 if is_shared else draft_busy_s,
        num_edge_gpus=first.num_edges if drafts_on_edge(first.system) and not is_shared else 0,
    )


def per_repetition(run: Run) -> dict[tuple[str, int], dict[str, float]]:
    """The figures that repetitions are compared by: for (cell, repetition), metric name to value.

    `throughput` is in tokens/s, `ttft` and `itl` are means in seconds. Interrupted repetitions are left out.
    """
    requests: dict[tuple[str, int], list[RequestRecord]] = defaultdict(list)
    for request in run.requests:
        if request.status == "ok":
            requests[request.cell, request.repetition].append(request)
    figures = {}
    for cell in run.cells:
        answered = requests[cell.cell, cell.repetition]
        figures[cell.cell, cell.repetition] = {
            "throughput": _ratio(sum(request.num_tokens for request in answered), cell.wall_s),
            "ttft": percentiles([request.ttft_s for request in answered]).mean,
            "itl": percentiles([gap for request in answered for gap in request.token_gaps_s()]).mean,
        }
    return figures


def identity(requests: Iterable[RequestRecord]) -> Identity:
    """Compares the answers to equal prompts and seeds."""
    cells: dict[tuple[str, int], dict[str, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
    systems: dict[tuple[str, int], set[str]] = defaultdict(set)
    for request in requests:
        if request.status == "ok":
            cells[request.prompt, request.seed][request.digest][request.cell] = None
            systems[request.prompt, request.seed].add(request.system)
    mismatches = [
        Mismatch(prompt, seed, {digest: tuple(names) for digest, names in by_digest.items()})
        for (prompt, seed), by_digest in cells.items()
        if len(by_digest) > 1
    ]
    return Identity(sum(len(names) > 1 for names in systems.values()), tuple(mismatches))


def latencies(requests: Sequence[RequestRecord]) -> Latencies:
    """Percentiles over answered requests, and over all their pauses between tokens."""
    return Latencies(
        ttft=percentiles([request.ttft_s for request in requests]),
        itl_token=percentiles([gap for request in requests for gap in request.token_gaps_s()]),
        itl_burst=percentiles([gap for request in requests for gap in request.burst_gaps_s()]),
        tpot=percentiles([request.tpot_s for request in requests]),
        e2e=percentiles([request.e2e_s for request in requests]),
    )


def _summarise_cell(
    requests: Sequence[RequestRecord],
    cells: Sequence[CellRecord],
    steps: Sequence[StepRecord],
    slo: Slo,
    verifier_price: float,
    edge_price: float,
) -> CellSummary:
    named = cells[0] if cells else requests[0]
    complete = {cell.repetition for cell in cells}
    answered = [request for request in requests if request.status == "ok"]
    counted = [request for request in answered if request.repetition in complete]
    num_tokens = sum(request.num_tokens for request in counted)
    tokens_of = Counter[int]()
    for request in counted:
        tokens_of[request.repetition] += request.num_tokens
    wall_s = math.fsum(cell.wall_s for cell in cells)
    met = [request for request in counted if slo.is_met(request)]
    used = usage(cells, num_tokens) if cells else Usage(0, 0.0, 0.0, 0.0, 0)
    measured = [cell.rtt_ms_measured for cell in cells if cell.rtt_ms_measured is not None]
    return CellSummary(
        cell=named.cell,
        system=named.system,
        network=named.network,
        load=named.load,
        num_users=cells[0].num_users if cells else 1 + max(request.user for request in requests),
        num_edges=cells[0].num_edges if cells else 1 + max(request.edge for request in requests),
        num_repetitions=len(complete),
        num_interrupted=len({request.repetition for request in requests} - complete),
        num_ok=len(answered),
        num_failed=len(requests) - len(answered),
        num_tokens=num_tokens,
        latencies=latencies(answered),
        throughput=_throughput(cells, tokens_of),
        goodput=_ratio(sum(request.num_tokens for request in met), wall_s),
        slo_share=_ratio(len(met), sum(request.repetition in complete for request in requests)),
        speculation=_speculation(cells, num_tokens),
        verifier_busy_s_per_token=_ratio(math.fsum(cell.verifier_busy_s for cell in cells), num_tokens),
        draft_busy_s_per_token=_ratio(math.fsum(cell.draft_busy_s for cell in cells), num_tokens),
        steps=_step_times(steps),
        rtt_ms_configured=cells[0].rtt_ms_configured if cells else math.nan,
        rtt_ms_measured=math.fsum(measured) / len(measured) if measured else math.nan,
        num_preemptions=sum(cell.num_preemptions for cell in cells),
        prefix_hit_rate=_ratio(sum(cell.prefix_hits for cell in cells), sum(cell.prefix_queries for cell in cells)),
        cost=cost(used, verifier_price, edge_price),
    )


def _throughput(cells: Sequence[CellRecord], tokens_of: Counter[int]) -> Interval:
    """Tokens over wall time of all repetitions; their spread gives the interval."""
    spread = mean_interval([_ratio(tokens_of[cell.repetition], cell.wall_s) for cell in cells])
    total = _ratio(sum(tokens_of.values()), math.fsum(cell.wall_s for cell in cells))
    return Interval(total, spread.low, spread.high)


def _speculation(cells: Sequence[CellRecord], num_tokens: int) -> Speculation:
    num_verifications = sum(cell.num_verifications for cell in cells)
    num_trees = sum(cell.num_trees for cell in cells)
    num_draft_steps = sum(cell.num_draft_steps for cell in cells)
    hits = sum(cell.guesses_hit for cell in cells)
    wasted = Counter[str]()
    by_depth = [0] * max((len(cell.accepted_by_depth) for cell in cells), default=0)
    for cell in cells:
        wasted.update(cell.wasted)
        for depth, count in enumerate(cell.accepted_by_depth):
            by_depth[depth] += count
    return Speculation(
        tokens_per_verification=_ratio(num_tokens, num_verifications),
        accepted_per_tree=_ratio(sum(cell.num_accepted for cell in cells), num_trees),
        acceptance_by_depth=tuple(_ratio(count, num_trees) for count in by_depth),
        num_nodes_verified=sum(cell.num_nodes_verified for cell in cells),
        num_drafted=sum(cell.drafted_nodes for cell in cells),
        wasted=dict(wasted),
        guess_hit_rate=_ratio(hits, hits + sum(cell.guesses_missed for cell in cells)),
        draft_steps_per_token=_ratio(num_draft_steps, num_tokens),
        rows_per_draft_step=_ratio(sum(cell.num_draft_rows for cell in cells), num_draft_steps),
        sessions_per_draft_step=_ratio(sum(cell.num_draft_session_steps for cell in cells), num_draft_steps),
        bytes_up_per_verification=_ratio(sum(cell.bytes_up for cell in cells), num_verifications),
        bytes_down_per_verification=_ratio(sum(cell.bytes_down for cell in cells), num_verifications),
        wire_bytes_up_per_verification=_ratio(_total([cell.wire_bytes_up for cell in cells]), num_verifications),
        wire_bytes_down_per_verification=_ratio(_total([cell.wire_bytes_down for cell in cells]), num_verifications),
    )


def _step_times(steps: Sequence[StepRecord]) -> StepTimes:
    return StepTimes(
        total=percentiles([step.schedule_ms + step.forward_ms + step.sample_ms + step.settle_ms for step in steps]),
        queue=percentiles([wait for step in steps for wait in step.queue_ms]),
        mean_schedule=_ratio(math.fsum(step.schedule_ms for step in steps), len(steps)),
        mean_forward=_ratio(math.fsum(step.forward_ms for step in steps), len(steps)),
        mean_sample=_ratio(math.fsum(step.sample_ms for step in steps), len(steps)),
        mean_settle=_ratio(math.fsum(step.settle_ms for step in steps), len(steps)),
    )


def _total(counts: Sequence[int | None]) -> float:
    """Their sum; NaN where one was not counted."""
    return math.fsum(math.nan if count is None else count for count in counts)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
