"""The real services: every system at every distance, with all that is needed to simulate the same requests."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from specedge.errors import SpecEdgeError
from specedge_bench.client import ask
from specedge_bench.deployment import RunningSystem, deployed
from specedge_bench.measure import CellRun
from specedge_bench.options import Options
from specedge_bench.pace.forward_log import Forward, read_forwards
from specedge_bench.prompts.dataset import Prompt
from specedge_bench.prompts.loaders import load_prompts
from specedge_bench.records import CellRecord, RequestRecord, StepRecord
from specedge_bench.schedule import PlannedCell, PlannedRequest, plan_requests
from specedge_cli.supervisor import Interrupts

_NUM_WARM_UP_PROMPTS = 16
_LEAST_REQUESTS = 8


class RequestFailed(SpecEdgeError):
    """A request failed, so that what was measured is not what is simulated."""


@dataclass(frozen=True, slots=True)
class MeasuredCell:
    """One system, network and load as they were.

    Attributes:
        record: its totals.
        requests, prompts: in one order, that of the plan; users take turns in it.
        steps: of the verifier.
        forwards: of both models, paced.
    """

    record: CellRecord
    requests: tuple[RequestRecord, ...]
    prompts: tuple[Prompt, ...]
    steps: tuple[StepRecord, ...]
    forwards: tuple[Forward, ...]


@dataclass(frozen=True, slots=True)
class _Deployment:
    system: RunningSystem
    forward_log: Path


async def measure(options: Options, interrupts: Interrupts) -> AsyncIterator[MeasuredCell]:
    """Measures one cell after the other; systems take turns.

    Raises:
        SpecEdgeError: a system could not be started or has died, or a request failed.
        Interrupted: the user wants no more.
    """
    assert options.pace is not None, "forwards are logged by runners that keep a pace"
    networks = dict(zip(options.network_names, options.networks, strict=True))
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="specedge-accuracy-")))
        client = await stack.enter_async_context(
            httpx.AsyncClient(trust_env=False, timeout=options.ask.timeout_s, limits=limits)
        )
        deployments: dict[str, _Deployment] = {}
        for number, variant in enumerate(options.systems):
            log = folder / f"forwards-{number}.jsonl"
            paced = replace(options, pace=replace(options.pace, log=log))
            started = deployed(variant, paced, folder / f"steps-{number}.jsonl", interrupts)
            deployments[variant.name] = _Deployment(await stack.enter_async_context(started), log)
        prompts = load_prompts(options.dataset)
        for cell, requests in _plan(options, prompts[_NUM_WARM_UP_PROMPTS:]):
            deployment = deployments[cell.system.name]
            await _warm_up(client, deployment.system, prompts[:_NUM_WARM_UP_PROMPTS], cell, options)
            ended: list[RequestRecord] = []
            run = CellRun(cell, requests, networks[cell.network], client, options.ask, ended.append, interrupts)
            started_s = time.time()
            record, steps = await run.run(deployment.system, cache_prefill=False)
            forwards = [forward for forward in read_forwards(deployment.forward_log) if forward.started_s >= started_s]
            yield _cell(record, requests, ended, steps, forwards)


def _plan(options: Options, prompts: Sequence[Prompt]) -> Iterator[tuple[PlannedCell, list[PlannedRequest]]]:
    """The cells; each network and load takes the next prompts, so that few are in a prefix cache."""
    first = 0
    for network in options.network_names:
        for load in options.loads:
            assert load.num_users is not None
            num_requests = load.num_requests(options.num_requests or max(_LEAST_REQUESTS, 2 * load.num_users))
            own = [prompts[(first + index) % len(prompts)] for index in range(num_requests)]
            requests = plan_requests(
                own, load, 0, num_requests=num_requests, num_edges=options.num_edges, seed=options.seed + first
            )
            first += num_requests
            for system in options.systems:
                yield PlannedCell(system, network, load, 0), requests


async def _warm_up(
    client: httpx.AsyncClient, system: RunningSystem, prompts: Sequence[Prompt], cell: PlannedCell, options: Options
) -> None:
    """As many answers at a time as the cell has users: what the services learnt in the cell before is outlearnt."""
    assert cell.load.num_users is not None
    asked = [
        ask(client, system.edge_urls[user % len(system.edge_urls)], prompts[user % len(prompts)], user, options.ask)
        for user in range(cell.load.num_users)
    ]
    await asyncio.gather(*asked)


def _cell(
    record: CellRecord,
    planned: Sequence[PlannedRequest],
    ended: Sequence[RequestRecord],
    steps: Sequence[StepRecord],
    forwards: Sequence[Forward],
) -> MeasuredCell:
    for request in ended:
        if request.status != "ok":
            raise RequestFailed(f"{request.cell}: {request.prompt} failed: {request.error}")
    found = {(request.prompt, request.user): request for request in ended}
    requests = tuple(found[request.prompt.id, request.user] for request in planned)
    return MeasuredCell(record, requests, tuple(request.prompt for request in planned), tuple(steps), tuple(forwards))
