"""Measures one cell: requests through the edges' HTTP APIs, and what the services' metrics grew by meanwhile."""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, replace

import httpx

from specedge_bench.client import Answer, AskSettings, ask
from specedge_bench.counters import count
from specedge_bench.deployment import Interrupted, RunningSystem, SystemFailed
from specedge_bench.network.profiles import NetworkProfile
from specedge_bench.records import CellRecord, RequestRecord, StepRecord
from specedge_bench.schedule import PlannedCell, PlannedRequest
from specedge_bench.scrape import Samples, growth, scrape
from specedge_cli.supervisor import Interrupts

_SETTLING_S = 0.15  # what a request leaves behind is over, and logged, after this
_POLL_S = 0.1
_MAX_FILLING = 4
_STEP_FIELDS = (
    *("num_sessions", "num_prefill", "num_nodes", "num_accepted", "num_committed", "num_moved"),
    *("schedule_ms", "forward_ms", "sample_ms", "settle_ms", "num_kv_tokens"),
)

OnRequest = Callable[[RequestRecord], None]


class CellRun:
    """One cell while it is measured.

    Args:
        cell: what is measured.
        requests: its requests, a user's in order.
        network: None is the network that is there.
        client: to send with.
        settings: of all requests.
        on_request: told about each request as soon as it has ended.
        interrupts: of the user.
    """

    def __init__(
        self,
        cell: PlannedCell,
        requests: Sequence[PlannedRequest],
        network: NetworkProfile | None,
        client: httpx.AsyncClient,
        settings: AskSettings,
        on_request: OnRequest,
        interrupts: Interrupts,
    ) -> None:
        self._cell = cell
        self._requests = requests
        self._network = network
        self._client = client
        self._settings = settings
        self._on_request = on_request
        self._interrupts = interrupts
        self._started_s = 0.0
        self._ended: dict[int, RequestRecord] = {}

    async def run(self, system: RunningSystem, cache_prefill: bool) -> tuple[CellRecord, list[StepRecord]]:
        """Sends every request and waits for all of them.

        Args:
            system: the cell's, ready.
            cache_prefill: whether every prompt is put into the verifier's prefix cache before.

        Raises:
            SpecEdgeError: a process ended; see `fail`.
            Interrupted: the user wants no more; requests that were under way have not been reported.
        """
        if self._network is not None:
            await system.way.set_profile(self._network)
        if cache_prefill:
            await self._guarded(self._fill_cache(system), system)
        before, wire_before = await self._scrape(system), await system.way.counts()
        log = system.step_log
        log_offset = log.stat().st_size if log is not None and log.exists() else 0
        wall_clock_s = time.time()
        self._started_s = time.perf_counter()
        await self._guarded(self._send_all(system), system)
        await asyncio.sleep(_SETTLING_S)
        after, wire_after = await self._scrape(system), await system.way.counts()
        steps: list[StepRecord] = []
        if log is not None and log.exists():
            with log.open("rb") as file:
                file.seek(log_offset)
                steps = parse_steps(file.read().decode(), self._cell.name, self._cell.repetition, wall_clock_s)
        record = self._cell_record(before, after, len(system.edge_urls))
        if wire_before is not None and wire_after is not None:
            up, down = (after - before for before, after in zip(wire_before, wire_after, strict=True))
            record = replace(record, wire_bytes_up=up, wire_bytes_down=down)
        return record, steps

    def fail(self, reason: str) -> None:
        """Reports every request that has not ended as failed."""
        now_s = time.perf_counter()
        self._started_s = self._started_s or now_s
        for index in range(len(self._requests)):
            if index not in self._ended:
                self._report(index, Answer(now_s, now_s, reason))

    async def _guarded(self, work: Coroutine[None, None, None], system: RunningSystem) -> None:
        """Does the work for as long as the system lives and the user waits."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_POLL_S)
                if task.done():
                    break
                if self._interrupts.count:
                    raise Interrupted
                if failure := system.failure():
                    raise SystemFailed(failure)
            task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _fill_cache(self, system: RunningSystem) -> None:
        """One token of an answer to each prompt; so that the cell finds the prompt's whole blocks."""
        turn = asyncio.Semaphore(_MAX_FILLING)
        prompts = {request.prompt.id: request for request in self._requests}

        async def fill(request: PlannedRequest) -> None:
            async with turn:
                url = system.edge_urls[request.edge]
                await ask(self._client, url, request.prompt, request.seed, self._settings, max_tokens=1)

        await asyncio.gather(*(fill(request) for request in prompts.values()))

    async def _send_all(self, system: RunningSystem) -> None:
        by_user: dict[int, list[int]] = defaultdict(list)
        for index, request in enumerate(self._requests):
            by_user[request.user].append(index)
        async with asyncio.TaskGroup() as group:
            for indices in by_user.values():
                group.create_task(self._send_in_turn(system, indices))

    async def _send_in_turn(self, system: RunningSystem, indices: Sequence[int]) -> None:
        for index in indices:
            request = self._requests[index]
            if request.due_s is not None:
                await asyncio.sleep(max(0.0, self._started_s + request.due_s - time.perf_counter()))
            url = system.edge_urls[request.edge]
            self._report(index, await ask(self._client, url, request.prompt, request.seed, self._settings))

    def _report(self, index: int, answer: Answer) -> None:
        record = request_record(self._cell, self._requests[index], answer, self._started_s)
        self._ended[index] = record
        self._on_request(record)

    async def _scrape(self, system: RunningSystem) -> tuple[list[Samples], Samples | None]:
        try:
            edges = [await scrape(self._client, f"{url}/metrics") for url in system.edge_urls]
            url = system.verifier_metrics_url
            return edges, None if url is None else await scrape(self._client, url)
        except httpx.HTTPError as error:
            raise SystemFailed(system.failure() or f"{system.variant.name} gives no metrics: {error!r}") from error

    def _cell_record(
        self, before: tuple[list[Samples], Samples | None], after: tuple[list[Samples], Samples | None], num_edges: int
    ) -> CellRecord:
        records = self._ended.values()
        edges = [growth(old, new) for old, new in zip(before[0], after[0], strict=True)]
        verifier = None if before[1] is None or after[1] is None else growth(before[1], after[1])
        at_verifier = self._cell.system.drafts_at_verifier
        return CellRecord(
            cell=self._cell.name,
            system=self._cell.system.name,
            network=self._cell.network,
            load=self._cell.load.name,
            repetition=self._cell.repetition,
            num_users=len({request.user for request in self._requests}),
            num_edges=num_edges,
            wall_s=max(record.finished_s for record in records) - min(record.sent_s for record in records),
            num_failed=sum(record.status != "ok" for record in records),
            rtt_ms_configured=0.0 if self._network is None else self._network.rtt_ms,
            draft_on_verifier=at_verifier,
            **asdict(count(edges, verifier, drafts_at_verifier=at_verifier)),
        )


def request_record(cell: PlannedCell, request: PlannedRequest, answer: Answer, started_s: float) -> RequestRecord:
    """The row of one request; `started_s` is the cell's start by the answer's clock."""
    sent_s = answer.sent_s - started_s
    return RequestRecord(
        cell=cell.name,
        system=cell.system.name,
        network=cell.network,
        load=cell.load.name,
        repetition=cell.repetition,
        edge=request.edge,
        user=request.user,
        prompt=request.prompt.id,
        num_prompt_tokens=answer.num_prompt_tokens,
        seed=request.seed,
        status="failed" if answer.error else "ok",
        error=answer.error,
        scheduled_s=sent_s if request.due_s is None else request.due_s,
        sent_s=sent_s,
        bursts=tuple((moment_s - started_s, num_tokens) for moment_s, num_tokens in answer.bursts),
        finished_s=answer.finished_s - started_s,
        finish_reason=answer.finish_reason,
        num_tokens=sum(num_tokens for _, num_tokens in answer.bursts),
        digest=answer.digest,
        num_cached_tokens=answer.num_cached_tokens,
    )


def parse_steps(text: str, cell: str, repetition: int, started_s: float) -> list[StepRecord]:
    """The steps in a piece of a step log; `started_s` is the cell's start by the wall clock.

    A last line that is still being written is left out, and so are steps of before the start.
    """
    steps = []
    for line in text.split("\n")[:-1]:
        row = json.loads(line)
        if row["started_s"] >= started_s - 0.001:
            steps.append(
                StepRecord(
                    cell=cell,
                    repetition=repetition,
                    started_s=row["started_s"] - started_s,
                    accepted_depths=tuple(row["accepted_depths"]),
                    queue_ms=tuple(row["queue_ms"]),
                    **{name: row[name] for name in _STEP_FIELDS},
                )
            )
    return steps
