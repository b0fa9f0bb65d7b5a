"""A cell's totals from what its services' metrics grew by."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from specedge_bench.scrape import Samples

_PREFIXES = ("specedge_edge_", "specedge_verifier_", "vllm:")
_PHASES = ("schedule", "forward", "sample", "settle")


@dataclass(frozen=True, slots=True)
class Counters:
    """Fields of a CellRecord under their names there."""

    verifier_busy_s: float
    draft_busy_s: float
    num_verifications: int
    num_trees: int
    num_nodes_verified: int
    num_accepted: int
    accepted_by_depth: tuple[int, ...]
    drafted_nodes: int
    num_draft_steps: int
    num_draft_rows: int
    num_draft_session_steps: int
    guesses_hit: int
    guesses_missed: int
    bytes_up: int
    bytes_down: int
    rtt_ms_measured: float | None
    num_preemptions: int
    prefix_queries: int
    prefix_hits: int
    wasted: dict[str, int] = field(default_factory=dict)


def count(edges: Sequence[Samples], verifier: Samples | None, *, drafts_at_verifier: bool) -> Counters:
    """Adds up.

    The verifier's own counts are used where it was scraped; else the edges' view of it, in which its busy time and its
    cache are missing. Busy seconds of the verifier are its steps without draft steps, which are counted apart.

    Args:
        edges: growth of each edge's samples.
        verifier: growth of the verifier's samples.
        drafts_at_verifier: whether the drafter is the verifier's own.
    """
    at_edges: dict[str, float] = {}
    for samples in edges:
        for name, value in _stripped(samples).items():
            at_edges[name] = at_edges.get(name, 0.0) + value
    at_verifier = _stripped(verifier or {})
    drafter = at_verifier if drafts_at_verifier else at_edges
    verifications = at_edges if verifier is None else at_verifier
    return Counters(
        verifier_busy_s=sum(at_verifier.get(f"step_seconds_sum{{phase={phase}}}", 0.0) for phase in _PHASES),
        draft_busy_s=drafter.get("draft_step_seconds_sum", 0.0),
        num_verifications=_num_verifications(at_edges, None if verifier is None else at_verifier),
        num_trees=int(verifications.get("spec_decode_num_drafts_total", 0)),
        num_nodes_verified=int(verifications.get("spec_decode_num_draft_tokens_total", 0)),
        num_accepted=int(verifications.get("spec_decode_num_accepted_tokens_total", 0)),
        accepted_by_depth=_by_depth(verifications),
        drafted_nodes=int(drafter.get("draft_nodes_total", 0)),
        num_draft_steps=int(drafter.get("draft_step_seconds_count", 0)),
        num_draft_rows=int(drafter.get("draft_rows_total", 0)),
        num_draft_session_steps=int(drafter.get("draft_session_steps_total", 0)),
        guesses_hit=int(drafter.get("draft_guesses_total{outcome=hit}", 0)),
        guesses_missed=int(drafter.get("draft_guesses_total{outcome=missed}", 0)),
        bytes_up=int(at_edges.get("verifier_bytes_total{direction=up}", 0)),
        bytes_down=int(at_edges.get("verifier_bytes_total{direction=down}", 0)),
        rtt_ms_measured=_rtt_ms(at_edges),
        num_preemptions=int(at_verifier.get("num_preemptions_total", 0)),
        prefix_queries=int(verifications.get("prefix_cache_queries_total", 0)),
        prefix_hits=int(verifications.get("prefix_cache_hits_total", 0)),
        wasted={
            name.removeprefix("wasted_draft_nodes_total{reason=").removesuffix("}"): int(value)
            for name, value in sorted(drafter.items())
            if name.startswith("wasted_draft_nodes_total{")
        },
    )


def _stripped(samples: Samples) -> dict[str, float]:
    names = {}
    for name, value in samples.items():
        for prefix in _PREFIXES:
            if name.startswith(prefix):
                names[name.removeprefix(prefix)] = value
    return names


def _num_verifications(at_edges: Samples, at_verifier: Samples | None) -> int:
    """Every verdict counts, with or without a tree: of each answer the first, and one before each further burst."""
    if at_verifier is not None:
        return int(at_verifier.get("rows_total{kind=root}", 0))
    answers = sum(value for name, value in at_edges.items() if name.startswith("answers_total"))
    return int(at_edges.get("inter_burst_seconds_count", 0) + answers)


def _by_depth(samples: Samples) -> tuple[int, ...]:
    """Accepted nodes at depth 1, 2, ...; nothing behind the last depth that was reached."""
    counts: list[int] = []
    while (value := samples.get(f"spec_decode_num_accepted_tokens_per_pos_total{{position={len(counts)}}}", 0)) > 0:
        counts.append(int(value))
    return tuple(counts)


def _rtt_ms(at_edges: Samples) -> float | None:
    """Mean of the round trips that the edges timed meanwhile; None without one, as in a short cell."""
    num = at_edges.get("round_trip_seconds_count", 0.0)
    return 1e3 * at_edges["round_trip_seconds_sum"] / num if num else None
