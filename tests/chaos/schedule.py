"""Which faults come when: a pure function of the seed. In every round but blackouts one verifier is left alone."""

from dataclasses import dataclass
from enum import StrEnum
from random import Random


class Kind(StrEnum):
    """What is done to a verifier, or to the network before it."""

    KILL = "SIGKILL, restart"
    TERMINATE = "SIGTERM, restart"
    STOP = "SIGSTOP, SIGCONT"
    CUT = "network cut"
    SILENCE = "network silent"
    SILENCE_UP = "silent up"
    SILENCE_DOWN = "silent down"
    HALF_CLOSE_UP = "half-closed up"
    HALF_CLOSE_DOWN = "half-closed down"
    DELAY = "network delayed"
    THROTTLE = "network throttled"
    DISK = "disks full"

    @property
    def is_kill(self) -> bool:
        """Whether the verifier's process is taken."""
        return self in KILLS


BUSIEST = -1
"""The victim is the verifier that has most sessions when the fault begins."""

KILLS = (Kind.KILL, Kind.TERMINATE, Kind.STOP)
NETWORK = tuple(kind for kind in Kind if kind not in (*KILLS, Kind.DISK))
KILL_WEIGHTS = (5, 2, 3)
NETWORK_SHARE = 0.2  # of the other faults
DISK_SHARE = 0.04  # of the rounds, as those below
BLACKOUT_SHARE = 0.02
PATIENT_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        victim: index of the verifier, or BUSIEST.
        after_s: since the round began.
        lasts_s: until it is mended; a killed process is started again then.
    """

    kind: Kind
    victim: int
    after_s: float
    lasts_s: float


@dataclass(frozen=True, slots=True)
class Round:
    """Faults that overlap; the next round begins when all of them are mended.

    Attributes:
        pause_s: of rest before it.
        is_patient: begins only when every edge sees every verifier in good standing.
        is_blackout: no verifier is left; requests may fail.
    """

    faults: tuple[Fault, ...]
    pause_s: float
    is_patient: bool
    is_blackout: bool = False

    @property
    def num_kills(self) -> int:
        return sum(fault.kind.is_kill for fault in self.faults)


def make_rounds(seed: int, num_kills: int, num_verifiers: int, fills_disks: bool = True) -> list[Round]:
    """Rounds with at least so many kills.

    Args:
        fills_disks: whether that can be done here.
    """
    dice = Random(seed)
    rounds: list[Round] = []
    while sum(round_.num_kills for round_ in rounds) < num_kills:
        draw = dice.random()
        is_first = not rounds
        if not is_first and draw < BLACKOUT_SHARE:
            faults = [_kill(dice, victim, Kind.KILL) for victim in range(num_verifiers)]
        elif not is_first and fills_disks and draw < BLACKOUT_SHARE + DISK_SHARE:
            faults = [Fault(Kind.DISK, 0, 0.0, dice.uniform(1.0, 4.0))]
        else:
            faults = _some(dice, num_verifiers)
        is_blackout = len({fault.victim for fault in faults}) == num_verifiers
        rounds.append(
            Round(tuple(faults), dice.uniform(0.2, 1.5), is_first or dice.random() < PATIENT_SHARE, is_blackout)
        )
    return rounds


def _some(dice: Random, num_verifiers: int) -> list[Fault]:
    num_victims = dice.randint(1, num_verifiers - 1)
    victims = dice.sample(range(num_verifiers), num_victims)
    faults = []
    for victim in victims:
        if dice.random() < NETWORK_SHARE:
            kind = dice.choice(NETWORK)
            faults.append(Fault(kind, victim, dice.uniform(0.0, 1.0), dice.uniform(0.5, 5.0)))
        else:
            faults.append(_kill(dice, victim, dice.choices(KILLS, KILL_WEIGHTS)[0]))
    return faults


def _kill(dice: Random, victim: int, kind: Kind) -> Fault:
    # Twelve seconds of silence are noticed, one is not.
    lasts_s = dice.choice((1.0, 1.0, 12.0)) if kind is Kind.STOP else dice.uniform(0.0, 2.0)
    return Fault(kind, victim, dice.uniform(0.0, 1.0), lasts_s)
