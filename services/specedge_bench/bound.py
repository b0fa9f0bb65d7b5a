"""The physical bound: the most tokens per second a verifier can give, from its step times, acceptance and RTT.

Each session's verification follows from the outcome of its last one, so a session's round takes a step and, where its
next tree was not sent ahead, a round trip. Drafting, scheduling and queues cost nothing here. Sessions may take turns
in groups, so that one group's round trip hides behind the other groups' steps:

    round = max(sum of the groups' steps, longest step + (1 - hit_rate) * RTT)
    ITL = round / tokens per verification        tokens per second = sessions / ITL

The bound is the best of these over the nodes per tree and the number of groups.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from specedge.errors import SpecEdgeError

TokensPerVerification = Callable[[int], float]
MAX_NODES = 64
NUM_FINE_GROUPS = 8


class SecondsOf(Protocol):
    """Step times; a `StepCurve`, or what a run measured."""

    def seconds(self, num_rows: int, kv_tokens: int, num_sessions: int) -> float:
        """Of one step, by its rows, the KV tokens of all its sessions, and their number."""
        ...


class BoundError(SpecEdgeError):
    """The bound is asked for with a value that has no meaning."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The best that can be reached, and the setting that reaches it.

    Attributes:
        tokens_per_s: over all sessions.
        itl_s: mean time between two tokens of one session, in seconds.
        num_nodes: draft nodes of each tree.
        num_groups: groups of sessions that take turns.
        step_s: the longest group's verification, in seconds.
        round_s: from one verification of a session to its next, in seconds.
        tokens_per_round: what one verification gives on average.
    """

    tokens_per_s: float
    itl_s: float
    num_nodes: int
    num_groups: int
    step_s: float
    round_s: float
    tokens_per_round: float

    def reached(self, tokens_per_s: float) -> float:
        """The share of the bound that a measured throughput is."""
        return tokens_per_s / self.tokens_per_s


def no_draft(_num_nodes: int) -> float:
    """Tokens per step of plain decoding."""
    return 1.0


def tokens_from_depths(num_accepted: Sequence[int], num_trees: int) -> TokensPerVerification:
    """Tokens by nodes of a chain, from how many of `num_trees` verifications accepted a node at depth 1, 2, ...

    A tree that spends its nodes on siblings was measured with their help; as a chain it would accept no more, so the
    bound stays one.

    Raises:
        BoundError: no verification carried a tree, or a depth was accepted more often than the one before it.
    """
    if num_trees < 1:
        raise BoundError(f"num_trees is {num_trees}; acceptance needs one or more verifications with a tree")
    previous = num_trees
    for depth, count in enumerate(num_accepted, start=1):
        if not 0 <= count <= previous:
            raise BoundError(f"depth {depth} was accepted {count} times; the one before it {previous} times")
        previous = count
    return lambda num_nodes: 1.0 + sum(num_accepted[:num_nodes]) / num_trees


def tokens_from_points(points: Mapping[int, float]) -> TokensPerVerification:
    """Tokens by nodes of a tree, by straight lines between measured points; 1 without nodes, flat after the last.

    Raises:
        BoundError: a point has no nodes, or less than one token or more than one and its nodes.
    """
    for num_nodes, tokens in points.items():
        if num_nodes < 1 or not 1 <= tokens <= num_nodes + 1:
            raise BoundError(f"{num_nodes} nodes gave {tokens} tokens; between 1 and nodes + 1 is possible")
    known = sorted({0: 1.0, **points}.items())

    def tokens_at(num_nodes: int) -> float:
        below = max(point for point in known if point[0] <= num_nodes)
        above = min((point for point in known if point[0] > num_nodes), default=None)
        if above is None:
            return below[1]
        return below[1] + (above[1] - below[1]) * (num_nodes - below[0]) / (above[0] - below[0])

    return tokens_at


def physical_bound(
    curve: SecondsOf,
    num_sessions: int,
    kv_tokens: int,
    tokens: TokensPerVerification = no_draft,
    *,
    rtt_s: float = 0.0,
    hit_rate: float = 0.0,
    max_nodes: int = MAX_NODES,
) -> Bound:
    """The most tokens per second that `num_sessions` sessions can get, and with it their least ITL.

    Args:
        curve: the target's step times.
        kv_tokens: context of each session, in tokens.
        tokens: tokens per verification by the nodes of its tree.
        rtt_s: network round trip, in seconds.
        hit_rate: share of rounds whose next tree is at the verifier when the last one is done.
        max_nodes: largest tree to consider; 0 for plain decoding.

    Raises:
        BoundError: names the value that has no meaning.
    """
    if num_sessions < 1 or kv_tokens < 0 or max_nodes < 0:
        raise BoundError(f"sessions {num_sessions}, KV {kv_tokens}, nodes {max_nodes}: at least 1, 0 and 0 are needed")
    if rtt_s < 0 or not 0 <= hit_rate <= 1:
        raise BoundError(f"RTT {rtt_s} s and hit rate {hit_rate}: at least 0, and between 0 and 1, are needed")
    bounds = (
        _bound(curve, num_sessions, kv_tokens, tokens(num_nodes), num_nodes, num_groups, (1 - hit_rate) * rtt_s)
        for num_nodes in range(max_nodes + 1)
        for num_groups in _group_counts(num_sessions)
    )
    return max(bounds, key=lambda bound: bound.tokens_per_s)


def _bound(
    curve: SecondsOf,
    num_sessions: int,
    kv_tokens: int,
    tokens_per_round: float,
    num_nodes: int,
    num_groups: int,
    wait_s: float,
) -> Bound:
    small, num_larger = divmod(num_sessions, num_groups)
    # A row for the last accepted token and one for each node; each session reads its own context once.
    step_s = curve.seconds(small * (num_nodes + 1), small * kv_tokens, small)
    busy_s = num_groups * step_s
    if num_larger:
        larger = small + 1
        larger_s = curve.seconds(larger * (num_nodes + 1), larger * kv_tokens, larger)
        busy_s += num_larger * (larger_s - step_s)
        step_s = larger_s
    round_s = max(busy_s, step_s + wait_s)
    itl_s = round_s / tokens_per_round
    return Bound(num_sessions / itl_s, itl_s, num_nodes, num_groups, step_s, round_s, tokens_per_round)


def _group_counts(num_sessions: int) -> list[int]:
    """All small numbers of groups and powers of two after that: beyond a few, one group more changes little."""
    powers = (2**exponent for exponent in range(num_sessions.bit_length()))
    fine = range(1, min(num_sessions, NUM_FINE_GROUPS) + 1)
    return sorted({*fine, *(power for power in powers if power <= num_sessions)})
