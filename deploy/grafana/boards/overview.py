"""Is it healthy, is it fast enough, and is it worth its money?"""

from panels import EDGE, RED, VERIFIER, YELLOW, Query, dashboard, lines, number, table
from promql import quantile, rate, ratio, total

ANSWERS = "specedge_edge_slo_answers_total"
MET = ratio(total(ANSWERS, f'{EDGE}, met="yes"'), total(ANSWERS, EDGE))
TTFT = "specedge_edge_time_to_first_token_seconds"
ITL = "specedge_edge_inter_token_seconds"
REQUESTS = "specedge_edge_http_requests_total"
COMMITTED = "specedge_verifier_committed_tokens_total"

NOW = (
    "Now",
    [
        number(
            "Answers within the SLO",
            "Share of the answers that ended well whose first token and mean pause between tokens kept within the "
            "edge's slo_ttft_s and slo_itl_s",
            "percentunit",
            MET,
            limits=[(0.95, YELLOW), (0.99, "green")],
            base=RED,
            decimals=1,
        ),
        number("Tokens per second", "Tokens of answers", "short", total(COMMITTED, VERIFIER), decimals=1),
        number(
            "Time to first token, p95",
            "From a request's arrival to its first token, as the edge sees it",
            "s",
            quantile(0.95, TTFT, EDGE),
            limits=[(0.5, YELLOW), (1, RED)],
        ),
        number(
            "Time between tokens, p95",
            "A burst's pause is shared by its tokens",
            "s",
            quantile(0.95, ITL, EDGE),
            limits=[(0.05, YELLOW), (0.1, RED)],
        ),
        number(
            "Tokens per verification",
            "What a verification commits on average; plain decoding commits 1",
            "short",
            ratio(total(COMMITTED, VERIFIER), total("specedge_verifier_rows_total", f'{VERIFIER}, kind="root"')),
            decimals=2,
        ),
        number(
            "Cost of a million tokens, billed",
            "Every device that reports a price is paid for all of its time",
            "currencyUSD",
            "specedge:dollars_per_million_tokens_billed",
            decimals=2,
        ),
    ],
)

ANSWERING = (
    "Answers",
    [
        lines(
            "Tokens per second",
            "All tokens of answers, and those of answers that met the SLO (goodput)",
            "short",
            Query(total(COMMITTED, VERIFIER), "all tokens"),
            Query(total("specedge_edge_slo_tokens_total", EDGE), "goodput"),
        ),
        lines(
            "Time to first token",
            "From a request's arrival to its first token",
            "s",
            *(Query(quantile(share, TTFT, EDGE), f"p{100 * share:g}") for share in (0.5, 0.95, 0.99)),
            limits=[(1, RED)],
        ),
        lines(
            "Time between tokens",
            "A burst's pause is shared by its tokens",
            "s",
            *(Query(quantile(share, ITL, EDGE), f"p{100 * share:g}") for share in (0.5, 0.95, 0.99)),
            limits=[(0.1, RED)],
        ),
        lines(
            "Answers under way",
            "Before and after their first token",
            "short",
            Query(f"sum (specedge_edge_requests_running{{{EDGE}}})", "running"),
            Query(f"sum (specedge_edge_requests_waiting{{{EDGE}}})", "before their first token"),
            is_stacked=True,
        ),
        lines(
            "Requests per second",
            "By HTTP status",
            "reqps",
            Query(total(REQUESTS, EDGE, "status"), "{{status}}"),
            is_stacked=True,
        ),
        lines(
            "Ends of answers per second",
            "stop and length are good ends; abort is the user's",
            "ops",
            Query(total("specedge_edge_answers_total", EDGE, "finished_reason"), "{{finished_reason}}"),
            is_stacked=True,
        ),
        lines(
            "Answers within the SLO",
            "Of those that ended well",
            "percentunit",
            Query(MET, "within the SLO"),
            maximum=1,
            limits=[(0.95, YELLOW)],
        ),
        lines(
            "Time of a whole answer",
            "From a request's arrival to its last token",
            "s",
            *(
                Query(quantile(share, "specedge_edge_answer_seconds", EDGE), f"p{100 * share:g}")
                for share in (0.5, 0.95)
            ),
        ),
        lines(
            "Server errors",
            "Share of requests answered with a status of 500 or above, over five minutes",
            "percentunit",
            Query("specedge:http_errors:ratio_rate5m", "errors"),
            limits=[(0.05, RED)],
        ),
    ],
)

PROCESSES = (
    "Processes",
    [
        lines(
            "Processes that answer Prometheus",
            "",
            "short",
            Query('sum by (job) (up{job=~"specedge-.*"})', "{{job}}"),
        ),
        table(
            "Verifiers",
            "What runs",
            ("up", "bool_yes_no", f"specedge_verifier_info{{{VERIFIER}}}"),
            ("tokens/s", "short", total(COMMITTED, VERIFIER, "instance")),
            by=("instance", "model", "version"),
            width=8,
        ),
        table(
            "Edge agents",
            "What runs",
            ("up", "bool_yes_no", f"specedge_edge_info{{{EDGE}}}"),
            ("tokens/s", "short", f"sum by (instance) ({rate('specedge_edge_generated_tokens_total', EDGE)})"),
            by=("instance", "model", "version"),
            width=8,
        ),
    ],
)

BOARD = dashboard(
    "specedge-overview",
    "SpecEdge / Overview and SLO",
    "Is it healthy, fast enough, and worth its money?",
    [NOW, ANSWERING, PROCESSES],
)
