"""A measuring run: starts every system, measures all cells in turns, checks the answers, writes the report."""

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from itertools import product
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from specedge.errors import SettingsError, SpecEdgeError
from specedge_bench.client import ask
from specedge_bench.deployment import Interrupted, RunningSystem, SystemFailed, deployed, require_verifier
from specedge_bench.machine import this_machine, without_place
from specedge_bench.measure import CellRun
from specedge_bench.measured_bound import measured_bound
from specedge_bench.options import Options
from specedge_bench.prompt_lengths import token_counter
from specedge_bench.prompts.dataset import Prompt, fit
from specedge_bench.prompts.errors import EmptyPromptSet
from specedge_bench.prompts.loaders import load_prompts
from specedge_bench.records import RequestRecord, RunInfo
from specedge_bench.report import print_report, write
from specedge_bench.run_folder import RunFolder
from specedge_bench.schedule import PlannedCell, interleave, plan_requests
from specedge_bench.systems import SystemVariant
from specedge_cli.supervisor import Interrupts

INTERRUPTED = 130
FAILURE = 1
_MAX_STARTS = 2
_WARM_UP_PROMPTS = 2
_WARM_UP = "warm-up"
_LONGEST_MARK = "99999"
_METADATA_TIMEOUT_S = 30.0


class SystemSlot:
    """A system that may run, may have died, and may be started once more.

    Args:
        variant: which system.
        options: of the run.
        step_log: where its verifier logs steps.
        interrupts: of the user.
    """

    def __init__(self, variant: SystemVariant, options: Options, step_log: Path, interrupts: Interrupts) -> None:
        self.variant = variant
        self.failure = ""
        self.running: RunningSystem | None = None
        self._options = options
        self._step_log = step_log
        self._interrupts = interrupts
        self._num_starts = 0
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Starts it if it does not run and may be started; a failure is kept in `failure`."""
        if self.running is not None or self._num_starts == _MAX_STARTS:
            return
        self._num_starts += 1
        try:
            self.running = await self._stack.enter_async_context(
                deployed(self.variant, self._options, self._step_log, self._interrupts)
            )
        except SpecEdgeError as error:
            self.failure = str(error)

    async def stop(self, failure: str = "") -> None:
        """Stops it; a reason says why it could not go on."""
        self.failure = failure or self.failure
        self.running = None
        await self._stack.aclose()


class BenchRun:
    """One run from its first process to its last row.

    Args:
        options: what was asked for.
        folder: takes the rows.
        interrupts: of the user.
        console: for progress.
    """

    def __init__(self, options: Options, folder: RunFolder, interrupts: Interrupts, console: Console) -> None:
        self._options = options
        self._folder = folder
        self._interrupts = interrupts
        self._console = console
        self._prompts: list[Prompt] = []
        self.num_skipped_prompts = 0
        self.has_lost_a_system = False

    async def measure(self, prompts: Sequence[Prompt]) -> None:
        """Measures every cell.

        Raises:
            Interrupted: the user wants no more; what was measured is in the folder.
            SpecEdgeError: no system could be started, or no prompt fits.
        """
        options = self._options
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
        )
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with contextlib.AsyncExitStack() as stack:
            logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="specedge-bench-")))
            slots = {
                variant.name: SystemSlot(variant, options, logs / f"{number}.jsonl", self._interrupts)
                for number, variant in enumerate(options.systems)
            }
            for slot in slots.values():
                stack.push_async_callback(slot.stop)
            client = await stack.enter_async_context(
                httpx.AsyncClient(trust_env=False, timeout=options.ask.timeout_s, limits=limits)
            )
            stack.enter_context(progress)
            task = progress.add_task("starting", total=None)
            for slot in slots.values():
                progress.update(task, description=f"starting {slot.variant.name}")
                await slot.start()
            running = [slot.running for slot in slots.values() if slot.running is not None]
            if not running:
                raise SystemFailed("; ".join(slot.failure for slot in slots.values()))
            await self._fit_prompts(client, running[0], prompts)
            for slot in slots.values():
                progress.update(task, description=f"warming up {slot.variant.name}")
                await self._warm_up(client, slot)
            await self._measure_cells(client, slots, progress)

    async def _fit_prompts(self, client: httpx.AsyncClient, system: RunningSystem, prompts: Sequence[Prompt]) -> None:
        """Keeps the prompts that leave room for an answer; the others are counted."""
        options = self._options
        try:
            answer = await client.get(f"{system.edge_urls[0]}/v1/models", timeout=_METADATA_TIMEOUT_S)
            max_len = int(answer.raise_for_status().json()["data"][0]["max_model_len"])
        except (httpx.HTTPError, LookupError, ValueError) as error:
            raise SystemFailed(f"the edge of {system.variant.name} does not tell its context: {error!r}") from error
        room = max_len - options.ask.max_new_tokens
        counter = await asyncio.to_thread(token_counter, options.target_model, options.ask.reasoning)
        self._prompts, self.num_skipped_prompts = fit(
            prompts, lambda prompt: counter(prompt.marked(_LONGEST_MARK)), room
        )
        if not self._prompts:
            raise EmptyPromptSet(
                f"none of the {len(prompts)} prompts fits: the context is {max_len} tokens, and max_new_tokens takes "
                f"{options.ask.max_new_tokens} of them"
            )

    async def _warm_up(self, client: httpx.AsyncClient, slot: SystemSlot) -> None:
        """Some answers from every edge, of which nothing is kept."""
        if slot.running is None:
            return
        options, system = self._options, slot.running
        prompts = [self._prompts[-1 - number % len(self._prompts)] for number in range(_WARM_UP_PROMPTS)]
        asked = [
            ask(client, url, prompt.marked(_WARM_UP), 0, options.ask, options.warm_up_tokens)
            for url in system.edge_urls
            for prompt in prompts
        ]
        answers = asyncio.gather(*asked)
        while not answers.done():
            await asyncio.wait({answers}, timeout=0.1)
            if self._interrupts.count or system.failure():
                answers.cancel()
                await asyncio.gather(answers, return_exceptions=True)
                if self._interrupts.count:
                    raise Interrupted
                break
        if failure := system.failure():
            await slot.stop(failure)

    async def _measure_cells(self, client: httpx.AsyncClient, slots: dict[str, SystemSlot], progress: Progress) -> None:
        options = self._options
        networks = dict(zip(options.network_names, options.networks, strict=True))
        cells = list(interleave(options.systems, options.network_names, options.loads, options.num_repetitions))
        columns = list(product(options.network_names, options.loads))
        plans = [
            plan_requests(
                self._prompts,
                cell.load,
                cell.repetition,
                num_requests=options.num_requests or len(self._prompts),
                num_edges=options.num_edges,
                seed=options.seed,
                column=columns.index((cell.network, cell.load)),
                num_columns=len(columns),
                is_cold=not options.cache_prefill,
            )
            for cell in cells
        ]
        progress.remove_task(progress.task_ids[0])
        task = progress.add_task("", total=sum(map(len, plans)))

        def on_request(record: RequestRecord) -> None:
            self._folder.append_request(record)
            progress.advance(task)

        for cell, requests in zip(cells, plans, strict=True):
            progress.update(task, description=f"{cell.name} ({cell.repetition + 1}/{options.num_repetitions})")
            slot = slots[cell.system.name]
            if slot.running is None:
                await slot.start()
                await self._warm_up(client, slot)
            run = CellRun(cell, requests, networks[cell.network], client, options.ask, on_request, self._interrupts)
            if slot.running is None:
                run.fail(f"{cell.system.name} does not run: {_first_line(slot.failure)}")
                self._lost(cell, slot.failure)
                continue
            try:
                record, steps = await run.run(slot.running, options.cache_prefill)
            except SpecEdgeError as failure:
                run.fail(_first_line(str(failure)))
                self._lost(cell, str(failure))
                await slot.stop(str(failure))
            else:
                self._folder.append_steps(steps)
                self._folder.append_cell(record)

    def _lost(self, cell: PlannedCell, reason: str) -> None:
        self.has_lost_a_system = True
        self._console.print(f"{cell.name} failed: {reason}", markup=False, highlight=False, soft_wrap=True)


def run(options: Options) -> int:
    """Measures, writes the report and prints its table.

    Returns:
        0; 1 where answers differ, a system was lost or every request failed; 130 after an interruption, with a report
        of what was measured.

    Raises:
        SettingsError: the prompts, the folder or the verifier cannot be had as asked.
        SpecEdgeError: nothing could be measured.
    """
    if options.verifier is not None:
        _check_existing_verifier(options, options.verifier)
    prompts = load_prompts(
        options.dataset, path=options.dataset_path, hf_id=options.dataset_id, selection=options.selection
    )
    info = RunInfo(
        source="measured",
        created=datetime.now().astimezone().isoformat(timespec="seconds"),
        machine=this_machine(),
        target_model=without_place(options.target_model),
        draft_model=without_place(options.draft_model),
        network_method=options.network_method,
        options=options.given,
        prices=options.prices,
        verifier_gpu=options.verifier_gpu,
        edge_gpu=options.edge_gpu,
    )
    with RunFolder.create(options.out, info) as folder:
        bench = BenchRun(options, folder, Interrupts(), Console(stderr=True))
        is_interrupted = False
        try:
            asyncio.run(bench.measure(prompts))
        except Interrupted:
            is_interrupted = True
        modes = {variant.name: (variant.kind, variant.mode) for variant in options.systems}
        bound = measured_bound(RunFolder.load(options.out), modes)
        folder.write_info(replace(info, num_skipped_prompts=bench.num_skipped_prompts, bound=bound))
        has_answers = any(request.status == "ok" for request in RunFolder.load(options.out).requests)
    report, problem = write(options.out, options.slo)
    print_report(options.out, report, problem)
    if is_interrupted:
        print("interrupted: what had been measured by then is kept", file=sys.stderr)
        return INTERRUPTED
    return FAILURE if bench.has_lost_a_system or not has_answers else report.exit_code


def _check_existing_verifier(options: Options, address: str) -> None:
    """Its own settings cannot be chosen here, and only the way to one on this machine can be shaped."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise SettingsError(f"--verifier {address!r}; it must be HOST:PORT")
    if any(variant.drafts_at_verifier or variant.batch_type != "ready" for variant in options.systems):
        raise SettingsError("--verifier: a verifier that runs already serves autoregressive and specedge[:MODE] alone")
    if len(options.systems) > 1 and not options.cache_prefill:
        raise SettingsError(
            f"--verifier {address}: what one system asks is in the prefix cache when the next one asks it; measure one "
            "system, or all of them with --cache-prefill on"
        )
    if options.network_method == "namespaces":
        raise SettingsError("--verifier: a verifier that runs already is in no namespace; use --network-method proxy")
    if host not in ("127.0.0.1", "localhost") and any(network is not None for network in options.networks):
        raise SettingsError(f"--verifier {address}: it is not on this machine, so measure with --networks direct")
    require_verifier(address, options.edge_flags)


def _first_line(text: str) -> str:
    """The reason, without what a process wrote last."""
    return text.partition("; its last lines:")[0].partition("\n")[0]
