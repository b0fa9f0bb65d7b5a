"""The edge agents and their lines to the verifier."""

from panels import EDGE, RED, YELLOW, Query, dashboard, heatmap, lines, number, table
from promql import mean, quantile, ratio, share, total

PING = "specedge_edge_round_trip_seconds"
ROUND = "specedge_edge_round_seconds"
PARTS = "specedge_edge_round_part_seconds_total"
BYTES = "specedge_edge_verifier_bytes_total"
VERDICTS = (
    f"({total('specedge_edge_inter_burst_seconds_count', EDGE)}"
    f" + {total('specedge_edge_time_to_first_token_seconds_count', EDGE)})"
)


def most(expr: str) -> Query:
    """The ten largest of many edges."""
    return Query(f"topk(10, {expr})", "{{instance}}")


NOW = (
    "Now",
    [
        number("Edge agents", "That answer Prometheus", "short", f"count (specedge_edge_info{{{EDGE}}})", decimals=0),
        number(
            "Round trip, p50",
            "A ping to the verifier and back",
            "s",
            quantile(0.5, PING, EDGE),
            limits=[(0.05, YELLOW), (0.1, RED)],
        ),
        number(
            "Network share of rounds",
            "Share of the time between a draft and its verdict that is neither the verifier's queue nor its step",
            "percentunit",
            ratio(total(PARTS, f'{EDGE}, part="network"'), total(PARTS, EDGE)),
            decimals=0,
        ),
        number(
            "Bytes up per verdict",
            "Drafts and openings, framing included",
            "bytes",
            ratio(total(BYTES, f'{EDGE}, direction="up"'), VERDICTS),
            decimals=0,
        ),
        number(
            "Reconnects, last hour",
            "Streams that broke and were opened again",
            "short",
            f"sum (increase(specedge_edge_reconnects_total{{{EDGE}}}[1h]))",
            limits=[(1, YELLOW), (100, RED)],
            decimals=0,
        ),
        number(
            "Answers lost, last hour",
            "No verifier went on with them in time",
            "short",
            f"sum (increase(specedge_edge_answers_lost_total{{{EDGE}}}[1h]))",
            limits=[(1, RED)],
            decimals=0,
        ),
    ],
)

NETWORK = (
    "Network",
    [
        lines(
            "Round trip",
            "Pings of all edges",
            "s",
            *(Query(quantile(rank, PING, EDGE), f"p{100 * rank:g}") for rank in (0.5, 0.95)),
            limits=[(0.1, RED)],
        ),
        lines("Round trip by edge", "Means; the ten slowest", "s", most(mean(PING, EDGE, "instance"))),
        heatmap("Round trips", "", "s", f"sum by (le) (increase({PING}_bucket{{{EDGE}}}[$__rate_interval]))"),
        lines(
            "Where a round's time goes",
            "Mean seconds from a draft's first message to its verdict: the verifier's queue, its step, the rest",
            "s",
            Query(
                share(total(PARTS, EDGE, "part"), total(f"{ROUND}_count", EDGE)),
                "{{part}}",
            ),
            is_stacked=True,
        ),
        lines(
            "Bytes per second",
            "Up is to the verifier",
            "Bps",
            Query(total(BYTES, EDGE, "direction"), "{{direction}}"),
        ),
        lines(
            "Bytes per verdict",
            "Up is to the verifier; openings carry the prompt",
            "bytes",
            *(
                Query(ratio(total(BYTES, f'{EDGE}, direction="{direction}"'), VERDICTS), direction)
                for direction in ("up", "down")
            ),
        ),
    ],
)

CONTINUITY = (
    "Continuity",
    [
        lines(
            "Reconnects per minute",
            "The ten edges with most",
            "short",
            most(f"60 * {total('specedge_edge_reconnects_total', EDGE, 'instance')}"),
        ),
        lines(
            "Resumed tokens per second",
            "Committed tokens that were sent again because their stream broke",
            "short",
            Query(total("specedge_edge_resumed_tokens_total", EDGE), "resumed"),
        ),
        lines(
            "Opening a stream",
            "Seconds until the verifier has admitted the session",
            "s",
            *(
                Query(quantile(rank, "specedge_edge_stream_open_seconds", EDGE), f"p{100 * rank:g}")
                for rank in (0.5, 0.95)
            ),
        ),
        lines(
            "Pings answered per second",
            "By edge, the ten with least: 1 is all, 0 is a verifier out of reach",
            "ops",
            Query(f"bottomk(10, {total(f'{PING}_count', EDGE, 'instance')})", "{{instance}}"),
        ),
        lines(
            "Answers lost per minute",
            "Users saw an error",
            "short",
            Query(f"60 * {total('specedge_edge_answers_lost_total', EDGE)}", "lost"),
        ),
        lines(
            "Draft KV slots held",
            "Share of an edge's slots, the ten fullest; sessions that find none draft nothing",
            "percentunit",
            most(
                f'sum by (instance) (specedge_edge_draft_kv_slots{{{EDGE}, state="held"}})'
                f" / sum by (instance) (specedge_edge_draft_kv_slots{{{EDGE}}})"
            ),
            maximum=1,
        ),
    ],
)

FLEET = (
    "Fleet",
    [
        table(
            "Edge agents",
            "One row for each",
            ("Tokens per second", "short", total("specedge_edge_generated_tokens_total", EDGE, "instance")),
            ("Answers running", "short", f"sum by (instance) (specedge_edge_requests_running{{{EDGE}}})"),
            (
                "Acceptance",
                "percentunit",
                ratio(
                    total("specedge_edge_accepted_draft_nodes_total", EDGE, "instance"),
                    total("specedge_edge_verified_draft_nodes_total", EDGE, "instance"),
                ),
            ),
            ("Round trip", "s", mean(PING, EDGE, "instance")),
            (
                "Reconnects, last hour",
                "short",
                f"sum by (instance) (increase(specedge_edge_reconnects_total{{{EDGE}}}[1h]))",
            ),
            by=("instance",),
        ),
        table(
            "What drafts",
            "Engine, number format and device of each edge's draft model",
            ("runs", "bool_yes_no", f"specedge_edge_draft_execution_info{{{EDGE}}}"),
            by=("instance",),
        ),
    ],
)

BOARD = dashboard(
    "specedge-edges",
    "SpecEdge / Edge fleet and network",
    "The edge agents and their lines to the verifier",
    [NOW, NETWORK, CONTINUITY, FLEET],
)
