"""`make chaos` and `make soak` in short: the same code on one site."""

from pathlib import Path

import pytest
from chaos.faults import why_disks_stay
from chaos.run import Options, Result, run_on
from chaos.schedule import Fault, Kind, Round
from resilience.site import running_site
from soak import run as soak

ROUNDS = [
    Round((Fault(Kind.KILL, 0, 0.0, 0.0), Fault(Kind.TERMINATE, 1, 0.0, 0.0)), pause_s=0.5, is_patient=True),
    Round((Fault(Kind.STOP, 2, 0.0, 1.0), Fault(Kind.STOP, 0, 0.3, 1.0)), pause_s=0.0, is_patient=True),
    Round((Fault(Kind.HALF_CLOSE_DOWN, 1, 0.0, 0.3),), pause_s=0.0, is_patient=False),
    Round((Fault(Kind.DISK, 0, 0.0, 0.4),), pause_s=0.0, is_patient=False),
]
CHAOS = Options(num_users=3, num_asks=4, min_tokens=100, max_tokens=300, pause_s=0.0, warm_up_s=0.5)
SOAK = soak.Options(minutes=0.05, num_phases=1, restarts=False, num_users=4, pause_s=0.0, num_samples=10)


@pytest.mark.timeout(600)  # four processes start, and two again, perhaps on a machine that others use too
async def test_faults_cost_a_pause_and_nothing_grows(tmp_path: Path) -> None:
    rounds = ROUNDS if why_disks_stay() is None else ROUNDS[:-1]
    kills, soaked = Result(rounds), soak.Result()
    async with running_site(tmp_path, num_verifiers=3, num_edges=1) as site:
        await run_on(site, CHAOS, kills, lambda _: None)
        assert kills.problems == []
        await soak.run_on(site, SOAK, soaked, lambda _: None)
    assert soaked.problems == []
    assert kills.num_kills == 4
    assert len(kills.answers) > 4
    assert soaked.tally.num_turns
