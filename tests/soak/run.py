"""One run: phases of mixed load with a restart in each, and rests between them in which nothing may be held."""

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from random import Random

import httpx
import openai
from processes import Edge, Service, Verifier
from resilience.site import Site, SiteBroken, running_site
from soak.mix import MIX, Tally, Turn, WrongAnswer
from soak.watch import Sample, Watch

EXCUSED = (openai.APIConnectionError, openai.APIError, httpx.HTTPError, AssertionError)
"""What a user may see of an edge that is being restarted."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is to be done.

    Attributes:
        minutes: of load.
        num_phases: each ends with a rest.
        restarts: whether a process is restarted in each.
        num_users: at each edge.
        pause_s: that each rests after an answer, on average.
        num_samples: of what processes hold, over all phases.
    """

    seed: int = 1
    minutes: float = 30.0
    num_phases: int = 6
    restarts: bool = True
    num_users: int = 2
    pause_s: float = 0.3
    num_samples: int = 240


@dataclass(slots=True)
class Result:
    """What came of it; no problem is what is wanted."""

    watch: Watch = field(default_factory=Watch)
    tally: Tally = field(default_factory=Tally)
    restarts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


async def run(options: Options, folder: Path, on_sample: Callable[[Sample], None]) -> Result:
    """Starts two verifiers and two edges, and does it all.

    Args:
        options: what.
        folder: takes the logs.
        on_sample: is told of each sample.
    """
    result = Result()
    try:
        async with running_site(folder, 2, 2, seed=options.seed) as site:
            await run_on(site, options, result, on_sample)
    except SiteBroken as error:
        result.problems.append(str(error))
    return result


async def run_on(site: Site, options: Options, result: Result, on_sample: Callable[[Sample], None]) -> None:
    """Does it on a site that stands, whose first verifier and first edge are left alone."""
    restarts = cycle(_restarts(site))
    phase_s = options.minutes * 60 / options.num_phases
    pause_s = options.minutes * 60 / options.num_samples
    load = _MixedLoad(site, options, result.tally)
    try:
        for _ in range(options.num_phases):
            load.begin()
            ends_s = time.monotonic() + phase_s
            restart = None
            if options.restarts:
                restart = asyncio.create_task(_restart(site, *next(restarts), phase_s / 3, load, result))
            while (left_s := ends_s - time.monotonic()) > 0:
                await asyncio.sleep(min(pause_s, left_s))
                on_sample(await result.watch.sample(site))
                if restart is not None and restart.done():
                    restart.result()
            if restart is not None:
                await restart
            await load.end()
            await site.until_good()
            await site.until_idle()
            on_sample(await result.watch.sample(site))
    except SiteBroken as error:
        result.problems.append(str(error))
    finally:
        load.leave()
        result.problems += result.tally.problems
        result.problems += site.broken()
    result.problems += result.watch.problems()


def _restarts(site: Site) -> Iterator[tuple[Verifier | Edge, signal.Signals]]:
    """What is restarted, in turns, and by what it ends."""
    yield site.verifiers[-1], signal.SIGKILL
    if len(site.edges) > 1:
        yield site.edges[-1], signal.SIGTERM
    yield site.verifiers[-1], signal.SIGTERM


async def _restart(
    site: Site, service: Service, number: signal.Signals, after_s: float, load: "_MixedLoad", result: Result
) -> None:
    await asyncio.sleep(after_s)
    result.restarts.append(f"{service.address} by {number.name}")
    load.excuse(service)
    service.signal(number)
    code = await asyncio.to_thread(service.exit_code)
    if code != (0 if number is signal.SIGTERM else -number):
        raise SiteBroken(f"{service.address} ended with {code} after {number.name}: {service.log()[-2000:]}")
    await site.restart(service)
    load.excuse(None)


class _MixedLoad:
    """Users at each edge who take turns of all kinds."""

    def __init__(self, site: Site, options: Options, tally: Tally) -> None:
        self._site = site
        self._options = options
        self._tally = tally
        self._known: dict[str, str] = {}
        self._seed = options.seed
        self._is_over = False
        self._excused: Service | None = None
        self._users: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        """The users begin."""
        self._is_over = False
        for edge in self._site.edges:
            for _ in range(self._options.num_users):
                self._seed += 1
                self._users.append(asyncio.create_task(self._use(edge, Random(self._seed))))

    async def end(self) -> None:
        """Waits until the users have ended their last turns."""
        self._is_over = True
        users, self._users = self._users, []
        await asyncio.gather(*users)

    def leave(self) -> None:
        """The users go away at once, should they still be there."""
        for user in self._users:
            user.cancel()

    def excuse(self, service: Service | None) -> None:
        """From now on failures at this edge are nobody's fault."""
        self._excused = service

    async def _use(self, edge: Edge, dice: Random) -> None:
        kinds, weights = [*MIX], [*MIX.values()]
        async with edge.client() as client:
            while not self._is_over:
                (kind,) = dice.choices(kinds, weights)
                was_excused = self._excused is edge
                try:
                    await kind(Turn(edge, client, dice, self._known))
                except WrongAnswer as error:
                    self._tally.problems.append(f"{kind.__name__}: {error}")
                except EXCUSED as error:
                    if was_excused or self._excused is edge:
                        self._tally.num_excused += 1
                    else:
                        self._tally.problems.append(f"{kind.__name__}: {type(error).__name__}: {error}")
                name = kind.__name__
                self._tally.num_turns[name] = self._tally.num_turns.get(name, 0) + 1
                await asyncio.sleep(dice.uniform(0.0, 2 * self._options.pause_s))
