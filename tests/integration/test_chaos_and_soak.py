"""`make chaos` and `make soak` in short: the same code on one site."""

import asyncio
import signal
from pathlib import Path

import pytest
from chaos.faults import why_disks_stay
from chaos.run import Options, Result, run_on
from chaos.schedule import BUSIEST, Fault, Kind, Round
from failover_site import MOVED
from processes import nothing_held
from resilience.load import make_asks
from resilience.site import Site, running_site
from soak import run as soak

# Each but the last strikes the verifier that has most sessions then: beside the kill, that is the one that is left.
# What is noticed only after 6 to 8 s, SIGSTOP and silence, is left to `make chaos`.
FAULTS = (
    (
        Fault(Kind.KILL, BUSIEST, 0.0, 0.0),
        Fault(Kind.DELAY, BUSIEST, 0.5, 1.2),
        Fault(Kind.THROTTLE, BUSIEST, 2.0, 1.2),
    ),
    (Fault(Kind.HALF_CLOSE_DOWN, BUSIEST, 0.0, 0.1),),
    (Fault(Kind.HALF_CLOSE_UP, BUSIEST, 0.0, 0.1),),
    (Fault(Kind.CUT, BUSIEST, 0.0, 0.2),),
    (Fault(Kind.DISK, 0, 0.0, 0.4),),
)
# Not patient after the kill: a verifier that broke a stream is in good standing again only after ten seconds.
ROUNDS = [Round(faults, pause_s=0.2, is_patient=index == 0) for index, faults in enumerate(FAULTS)]
CHAOS = Options(num_users=3, num_asks=3, min_tokens=100, max_tokens=200, pause_s=0.2, warm_up_s=0.5)
SOAK = soak.Options(minutes=0.05, num_phases=1, restarts=False, num_users=2, pause_s=0.1, num_samples=6)
DRAINED = make_asks(4, 400, 400)


@pytest.mark.timeout(600)  # four processes start, perhaps on a machine that others use too
async def test_faults_cost_a_pause_and_nothing_grows(tmp_path: Path) -> None:
    rounds = ROUNDS if why_disks_stay() is None else ROUNDS[:-1]
    kills, soaked = Result(rounds), soak.Result()
    async with running_site(tmp_path, num_verifiers=2, num_edges=1) as site:
        await run_on(site, CHAOS, kills, lambda _: None)
        assert kills.problems == []
        await soak.run_on(site, SOAK, soaked, lambda _: None)
        await a_terminated_verifier_hands_its_answers_over(site)
    assert soaked.problems == []
    assert len(kills.events) == sum(len(round_.faults) for round_ in rounds)
    assert any(effect.recoveries_s for effect in kills.effects), "an answer must have left its verifier, and gone on"
    assert soaked.tally.num_turns


async def a_terminated_verifier_hands_its_answers_over(site: Site) -> None:
    """Last, as it is not started again: a second start would take as long as all other faults."""
    (edge,) = site.edges
    undisturbed, num_moved = await edge.answers(DRAINED), await edge.sample(MOVED)
    struck: list[int] = []

    async def strike() -> None:
        struck.append(await site.busiest())
        site.verifiers[struck[0]].signal(signal.SIGTERM)

    assert await edge.answers(DRAINED, strike, num_pieces=2) == undisturbed
    assert await asyncio.to_thread(site.verifiers[struck[0]].exit_code) == 0
    assert await edge.sample(MOVED) > num_moved, "an answer must have moved"
    await nothing_held(site.verifiers[1 - struck[0]], edge)
    assert [*site.broken()] == []
