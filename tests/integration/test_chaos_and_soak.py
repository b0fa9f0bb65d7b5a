"""`make chaos` and `make soak` in short: the same code on one site."""

from pathlib import Path

import pytest
from chaos.faults import why_disks_stay
from chaos.run import Options, Result, run_on
from chaos.schedule import Fault, Kind, Round
from resilience.site import running_site
from soak import run as soak

# SIGTERM has its own test (test_failover_processes): a second start would take as long as all of this.
FAULTS = (
    Fault(Kind.KILL, 0, 0.0, 0.0),
    Fault(Kind.STOP, 1, 0.0, 0.5),
    Fault(Kind.STOP, 0, 0.0, 0.5),
    Fault(Kind.STOP, 1, 0.0, 0.5),
    Fault(Kind.HALF_CLOSE_DOWN, 0, 0.0, 0.2),
    Fault(Kind.DISK, 0, 0.0, 0.4),
)
ROUNDS = [Round((fault,), pause_s=0.3, is_patient=index < 2) for index, fault in enumerate(FAULTS)]
CHAOS = Options(num_users=2, num_asks=4, min_tokens=50, max_tokens=300, pause_s=0.2, warm_up_s=0.5)
SOAK = soak.Options(minutes=0.05, num_phases=1, restarts=False, num_users=2, pause_s=0.1, num_samples=6)


@pytest.mark.timeout(600)  # four processes start, perhaps on a machine that others use too
async def test_faults_cost_a_pause_and_nothing_grows(tmp_path: Path) -> None:
    rounds = ROUNDS if why_disks_stay() is None else ROUNDS[:-1]
    kills, soaked = Result(rounds), soak.Result()
    async with running_site(tmp_path, num_verifiers=2, num_edges=1) as site:
        await run_on(site, CHAOS, kills, lambda _: None)
        assert kills.problems == []
        await soak.run_on(site, SOAK, soaked, lambda _: None)
    assert soaked.problems == []
    assert kills.num_kills == 4
    assert len(kills.answers) > 4
    assert soaked.tally.num_turns
