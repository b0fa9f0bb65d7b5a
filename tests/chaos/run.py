"""One run: load on a site, round after round of faults, then silence in which nothing may be left."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chaos.faults import Event, inflict, why_disks_stay
from chaos.recovery import Effect, effects_of, violations
from chaos.schedule import Round, make_rounds
from processes import Ask, Service
from resilience.load import Answer, Load, make_asks, undisturbed
from resilience.site import Site, SiteBroken, running_site
from resilience.usage import Usage

MAX_GROWN_FDS = 8
MAX_GROWN_THREADS = 4
MAX_GROWN_RSS_MIB = 96.0
"""What a process may hold at the end beyond what it held before the first fault, both times without a session."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is to be done.

    Attributes:
        num_kills: at least.
        num_asks, min_tokens, max_tokens: different requests, and the lengths of their answers.
        num_users, pause_s: at each edge, and how long each rests after an answer, on average.
        warm_up_s: of load before the first fault.
    """

    seed: int = 1
    num_kills: int = 100
    num_verifiers: int = 3
    num_edges: int = 2
    num_users: int = 2
    pause_s: float = 1.0
    num_asks: int = 12
    min_tokens: int = 100
    max_tokens: int = 800
    warm_up_s: float = 15.0


@dataclass(slots=True)
class Result:
    """What came of it.

    Attributes:
        problems: what must not be; none is what is wanted.
        usage: of each process, before the first fault and at the end.
    """

    rounds: list[Round]
    answers: list[Answer] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    usage: dict[str, tuple[Usage, Usage]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def num_kills(self) -> int:
        return sum(event.fault.kind.is_kill for event in self.events)


async def run(options: Options, folder: Path, on_round: Callable[[Round], None]) -> Result:
    """Starts a site and does it all.

    Args:
        options: what.
        folder: takes the logs.
        on_round: is told of each round when it is over.
    """
    result = Result(planned(options))
    try:
        async with running_site(folder, options.num_verifiers, options.num_edges, seed=options.seed) as site:
            await run_on(site, options, result, on_round)
    except SiteBroken as error:
        result.problems.append(str(error))
    return result


def planned(options: Options) -> list[Round]:
    """The rounds of a run."""
    return make_rounds(options.seed, options.num_kills, options.num_verifiers, why_disks_stay() is None)


async def run_on(site: Site, options: Options, result: Result, on_round: Callable[[Round], None]) -> None:
    """Does it on a site that stands, and is idle after it."""
    asks = make_asks(options.num_asks, options.min_tokens, options.max_tokens)
    texts = await undisturbed(site.edges[0], asks)
    load = Load(site.edges, asks, options.num_users, options.pause_s, options.seed)
    try:
        load.begin()
        await asyncio.sleep(options.warm_up_s)
        await load.end()
        before = await _idle_usage(site)
        load.begin()
        for round_ in result.rounds:
            if round_.is_patient:
                await site.until_good()
            await asyncio.sleep(round_.pause_s)
            faults = (inflict(site, fault, round_.is_blackout) for fault in round_.faults)
            result.events += await asyncio.gather(*faults)
            on_round(round_)
        await site.until_good()
        await load.end()
        after = await _idle_usage(site)
        result.usage = {name: (usage, after[name]) for name, usage in before.items()}
    except SiteBroken as error:
        result.problems.append(str(error))
    finally:
        load.leave()
        _judge(site, load.answers, texts, result)


def _judge(site: Site, answers: Sequence[Answer], texts: dict[Ask, str], result: Result) -> None:
    result.answers = [*answers]
    records = sorted((record for edge in site.edges for record in site.records(edge)), key=lambda record: record.time_s)
    result.effects = effects_of(result.events, answers, records)
    result.problems += violations(answers, texts, result.events)
    result.problems += site.broken()
    for name, (before, after) in result.usage.items():
        for what, grown, limit in (
            ("MiB", after.rss_mib - before.rss_mib, MAX_GROWN_RSS_MIB),
            ("file descriptors", after.num_fds - before.num_fds, MAX_GROWN_FDS),
            ("threads", after.num_threads - before.num_threads, MAX_GROWN_THREADS),
        ):
            if grown > limit:
                result.problems.append(f"{name} holds {grown:.0f} {what} more than before the faults; {limit} may be")


async def _idle_usage(site: Site) -> dict[str, Usage]:
    """What each process holds without a session."""
    await site.until_idle()
    names: dict[str, Service] = {f"verifier {index + 1}": service for index, service in enumerate(site.verifiers)}
    names |= {f"edge {index + 1}": service for index, service in enumerate(site.edges)}
    return {name: Usage.of(service.process) for name, service in names.items()}
