"""Where an edge opens its sessions: the product's pool of verifiers and its choice, on hints as old as its pings."""

from collections.abc import Callable, Sequence
from random import Random
from types import SimpleNamespace
from typing import Any

from edge_agent.verifier_choice import Candidate, choose
from edge_agent.verifier_client import Pulse
from edge_agent.verifier_member import PoolTimes, VerifierMember
from specedge.wire.load_hint import LoadHint
from specedge_bench.simulation.events import EventQueue


class OneVerifier:
    """For an edge that knows one; verifiers are named by their indices."""

    def choose(self) -> int:
        """The one on which a session is to be opened now."""
        return 0

    def ended(self, index: int) -> None:
        """A session there has ended."""

    def start(self) -> None:
        """To be called whenever users begin to ask."""


class RandomVerifier(OneVerifier):
    """Without looking."""

    def __init__(self, num_verifiers: int, dice: Random) -> None:
        self._num_verifiers = num_verifiers
        self._dice = dice

    def choose(self) -> int:
        """Any."""
        return self._dice.randrange(self._num_verifiers)


class TwoChoices(OneVerifier):
    """As an edge agent chooses: its members, hints that are as old as its pings, and its `choose`.

    Args:
        events: virtual time.
        load_of: sessions of a verifier now, all edges together.
        one_way_s: of the network.
        is_over: whether nobody will ask any more; pings end then.
    """

    def __init__(
        self,
        events: EventQueue,
        num_verifiers: int,
        load_of: Callable[[int], LoadHint],
        one_way_s: float,
        dice: Random,
        is_over: Callable[[], bool],
    ) -> None:
        self._events = events
        self._load_of = load_of
        self._one_way_s = one_way_s
        self._dice = dice
        self._is_over = is_over
        self._times = PoolTimes()
        self._members = [_member(index, dice) for index in range(num_verifiers)]
        self._num_sessions = [0] * num_verifiers

    def choose(self) -> int:
        """The less loaded of two."""
        now_s = self._events.now_s
        members = self._members
        candidates = [
            Candidate(index, member.standing(now_s), False, member.load) for index, member in enumerate(members)
        ]
        index = choose(candidates, self._dice)
        assert index is not None, "an edge has verifiers"
        members[index].chosen(now_s)
        self._num_sessions[index] += 1
        return index

    def ended(self, index: int) -> None:
        """It is pinged less often without sessions."""
        self._num_sessions[index] -= 1

    def start(self) -> None:
        """Pings each verifier once, as when a pool starts, and then again and again."""
        for index in range(len(self._members)):
            self._events.after(self._dice.uniform(0.0, self._times.spread_s), self._pinger(index))

    def _pinger(self, index: int) -> Callable[[], None]:
        def ask() -> None:
            if not self._is_over():
                self._events.after(self._one_way_s, answer)

        def answer() -> None:
            load = self._load_of(index)
            self._events.after(self._one_way_s, lambda: heard(load))

        def heard(load: LoadHint) -> None:
            self._members[index].pulse(Pulse(True, load), self._events.now_s)
            times, dice = self._times, self._dice
            if self._num_sessions[index]:
                pause_s = times.ping_every_s * dice.uniform(0.75, 1.0)
            else:
                pause_s = times.idle_ping_every_s * dice.uniform(0.75, 1.25)
            self._events.after(pause_s, ask)

        return ask


def _member(index: int, dice: Random) -> VerifierMember:
    client: Any = SimpleNamespace(address=f"verifier {index}", refusal=None)
    return VerifierMember(client, dice)


def imbalance(session_seconds: Sequence[float]) -> float:
    """Load of the busiest over the mean: 1 where all carry the same."""
    total = sum(session_seconds)
    return max(session_seconds) * len(session_seconds) / total if total else 1.0
