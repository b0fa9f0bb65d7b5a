"""Where the time of one session went: its rounds, rebuilt from its bursts and the verifier's steps.

Rows of steps do not name sessions. A burst is matched with the last step that ended at least half a round trip
before it arrived; what lies between is the way down, the half trip before that step the way up, the rest is the edge's.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from specedge_bench.records import RequestRecord, StepRecord

Span = tuple[float, float]
"""Start and end in seconds since the request was sent."""

MAX_BURSTS = 14
# Clocks of two processes and the timer of the delay differ by a little; without this a step would be missed.
_HALF_TRIP_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Timeline:
    """The first rounds of one session.

    Attributes:
        steps: those that a burst was matched with.
        other_steps: the others meanwhile: of other sessions, or their tokens came with a later step's.
        bursts: arrivals and their tokens.
    """

    steps: tuple[Span, ...]
    other_steps: tuple[Span, ...]
    network: tuple[Span, ...]
    edge: tuple[Span, ...]
    bursts: tuple[tuple[float, int], ...]


def pick_timeline(
    cell: str, rtt_s: float, requests: Sequence[RequestRecord], steps: Sequence[StepRecord]
) -> Timeline | None:
    """The timeline of the cell's request of middling length; None without steps or answered requests."""
    answered = [request for request in requests if request.cell == cell and request.status == "ok" and request.bursts]
    if not answered:
        return None
    request = sorted(answered, key=lambda request: request.e2e_s)[len(answered) // 2]
    same = [step for step in steps if step.cell == cell and step.repetition == request.repetition]
    return session_timeline(request, rtt_s, same) if same else None


def session_timeline(request: RequestRecord, rtt_s: float, steps: Sequence[StepRecord]) -> Timeline:
    """Matches a request's bursts with the steps of its cell and repetition.

    Args:
        request: an answered one.
        rtt_s: round trip between edge and verifier.
        steps: in any order.
    """
    spans = sorted(_span(step) for step in steps)
    ends = [end for _, end in spans]
    bursts = request.bursts[:MAX_BURSTS]
    matched: list[tuple[Span, float]] = []  # (step, arrival of its burst)
    for arrival_s, _ in bursts:
        index = bisect_right(ends, arrival_s - _HALF_TRIP_SHARE * rtt_s / 2) - 1
        if index >= 0 and spans[index][0] >= request.sent_s and spans[index] not in [span for span, _ in matched]:
            matched.append((spans[index], arrival_s))
    network: list[Span] = []
    edge: list[Span] = []
    free_s = request.sent_s  # since when the edge has the previous burst
    for (start_s, end_s), arrival_s in matched:
        leaves_s = max(free_s, start_s - rtt_s / 2)
        if leaves_s > free_s:
            edge.append((free_s, leaves_s))
        if start_s > leaves_s and rtt_s > 0:
            network.append((leaves_s, min(start_s, leaves_s + rtt_s / 2)))
        network.append((end_s, arrival_s))
        free_s = arrival_s
    mine = {span for span, _ in matched}
    last_s = bursts[-1][0]
    others = [span for span in spans if span not in mine and request.sent_s <= span[0] <= last_s]

    def since_sent(spans: Sequence[Span]) -> tuple[Span, ...]:
        return tuple((start - request.sent_s, end - request.sent_s) for start, end in spans)

    return Timeline(
        steps=since_sent([span for span, _ in matched]),
        other_steps=since_sent(others),
        network=since_sent(network),
        edge=since_sent(edge),
        bursts=tuple((arrival_s - request.sent_s, count) for arrival_s, count in bursts),
    )


def labels_apart(bursts: Sequence[tuple[float, int]], least_s: float) -> list[tuple[float, int]]:
    """Arrivals and tokens, those nearer to the label before them than this added to it: numbers that can be read."""
    labels: list[tuple[float, int]] = []
    for arrival_s, count in bursts:
        if labels and arrival_s - labels[-1][0] < least_s:
            labels[-1] = labels[-1][0], labels[-1][1] + count
        else:
            labels.append((arrival_s, count))
    return labels


def _span(step: StepRecord) -> Span:
    duration_ms = step.schedule_ms + step.forward_ms + step.sample_ms + step.settle_ms
    return step.started_s, step.started_s + duration_ms / 1e3
