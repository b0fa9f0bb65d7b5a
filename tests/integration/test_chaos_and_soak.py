"""`make chaos` and `make soak` in short: the same code on one site."""

from pathlib import Path

from chaos.faults import why_disks_stay
from chaos.run import Options, Result, run_on
from chaos.schedule import Fault, Kind, Round
from resilience.site import running_site
from soak import run as soak

ROUNDS = [
    Round((Fault(Kind.KILL, 0, 0.0, 0.0), Fault(Kind.DELAY, 1, 0.0, 1.0)), 0.3, is_patient=True),
    Round((Fault(Kind.TERMINATE, 1, 0.0, 0.0),), 0.3, is_patient=True),
    Round((Fault(Kind.STOP, 0, 0.0, 1.0), Fault(Kind.KILL, 1, 0.3, 0.0)), 0.3, is_patient=True),
    Round((Fault(Kind.HALF_CLOSE_DOWN, 0, 0.0, 0.3),), 0.0, is_patient=True),
    Round((Fault(Kind.DISK, 0, 0.0, 0.5),), 0.0, is_patient=True),
]
SHORT = Options(num_users=3, num_asks=4, min_tokens=50, max_tokens=300, pause_s=0.0, warm_up_s=0.5)


async def test_faults_cost_a_pause_and_nothing_grows(tmp_path: Path) -> None:
    rounds = [round_ for round_ in ROUNDS if why_disks_stay() is None or round_.faults[0].kind is not Kind.DISK]
    kills = Result(rounds)
    soaked = soak.Result()
    async with running_site(tmp_path, num_verifiers=2, num_edges=1) as site:
        await run_on(site, SHORT, kills, lambda round_: None)
        options = soak.Options(minutes=0.08, num_phases=1, num_users=4, pause_s=0.0, num_samples=10)
        await soak.run_on(site, options, soaked, lambda sample: None)
    assert kills.problems == []
    assert kills.num_kills == 4
    assert len(kills.answers) > 4
    assert any(effect.recoveries_s for effect in kills.effects), "an answer must have left its verifier"
    assert soaked.problems == []
    assert sum(soaked.tally.num_turns.values()) > 10
    assert soaked.restarts
