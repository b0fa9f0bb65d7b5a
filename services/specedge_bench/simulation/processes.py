"""Shards of any number of scenarios on several cores; what comes out does not depend on how many."""

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized
from queue import Empty
from threading import Thread
from typing import Any, TypeAlias

from specedge.errors import SpecEdgeError
from specedge_bench.simulation.scenario import Progress, Scenario
from specedge_bench.simulation.shard import ShardOutcome, run_shard

Task = tuple[Scenario, int]
"""A scenario and the number of the verifier that is to be simulated."""

_Counter: TypeAlias = "Synchronized[int]"
_LOOK_EVERY_S = 0.2
_COLLECTION_THRESHOLDS = 100_000, 20, 20


class SimulationDied(SpecEdgeError):
    """A process that simulated was ended from outside."""


def run_shards(
    tasks: Sequence[Task], num_processes: int, on_progress: Callable[[int], None]
) -> Iterator[tuple[int, ShardOutcome]]:
    """Runs every task and gives (its index, its outcome) as soon as it is finished.

    Args:
        tasks: what to run; begun in this order.
        num_processes: at once; 1 runs in this process.
        on_progress: told how many tokens of all tasks have arrived.

    Raises:
        SimulationDied: a process has ended without an answer.
        SpecEdgeError: what a simulation raised.
    """
    if min(num_processes, len(tasks)) > 1:
        yield from _in_processes(tasks, min(num_processes, len(tasks)), on_progress)
        return
    num_before = 0
    for index, (scenario, shard) in enumerate(tasks):
        with _rare_collections():
            outcome = run_shard(scenario, shard, _after(num_before, on_progress))
        num_before += sum(answer.num_tokens for answer in outcome.answers)
        yield index, outcome


def _after(num_before: int, on_progress: Callable[[int], None]) -> Progress:
    return lambda done, total: on_progress(num_before + done)


def _in_processes(
    tasks: Sequence[Task], num_processes: int, on_progress: Callable[[int], None]
) -> Iterator[tuple[int, ShardOutcome]]:
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of a progress bar
    results: Any = context.Queue()
    next_task, num_tokens = context.Value("q", 0), context.Value("q", 0)
    workers = [
        context.Process(target=_work, args=(tasks, next_task, num_tokens, results), daemon=True)
        for _ in range(num_processes)
    ]
    try:
        for worker in workers:
            worker.start()
        for _ in tasks:
            index, outcome = _wait(results, workers, lambda: on_progress(num_tokens.value))
            if isinstance(outcome, Exception):
                raise outcome
            yield index, outcome
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


def _wait(results: Any, workers: Sequence[BaseProcess], on_look: Callable[[], None]) -> tuple[int, Any]:
    while True:
        on_look()
        are_over = not any(worker.is_alive() for worker in workers)
        try:
            found: tuple[int, Any] = results.get(timeout=_LOOK_EVERY_S)
        except Empty:
            failed = [worker.exitcode for worker in workers if worker.exitcode]
            if failed or are_over:
                raise SimulationDied(
                    f"a simulating process ended with code {failed[0] if failed else 0} and without a result; -9 is "
                    "most likely a lack of memory, which fewer --processes need less of"
                ) from None
        else:
            return found


def _work(tasks: Sequence[Task], next_task: _Counter, num_tokens: _Counter, results: Any) -> None:
    """One process: takes tasks until none is left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes itself
    Thread(target=_end_with_parent, daemon=True).start()
    while True:
        index = _add(next_task, 1)
        if index >= len(tasks):
            return
        try:
            with _rare_collections():
                results.put((index, run_shard(*tasks[index], _counted(num_tokens))))
        except SpecEdgeError as error:
            results.put((index, error))


def _end_with_parent() -> None:
    """A parent that was killed can end nobody, and nobody wants the results any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a process of a pool works"
    parent.join()
    os._exit(1)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """A simulation makes and forgets millions of tuples; looking for cycles among them as usual takes a sixth of it."""
    before = gc.get_threshold()
    gc.set_threshold(*_COLLECTION_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _counted(num_tokens: _Counter) -> Progress:
    num_seen = 0

    def count(done: int, total: int) -> None:
        nonlocal num_seen
        _add(num_tokens, done - num_seen)
        num_seen = done

    return count


def _add(counter: _Counter, number: int) -> int:
    """Adds to a counter of all processes; returns what it was."""
    with counter.get_lock():
        before = counter.value
        counter.value = before + number
    return before
