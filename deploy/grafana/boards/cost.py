"""What a token costs, and whose device earns its money."""

from panels import EDGE, VERIFIER, Query, dashboard, lines, number, table

BILLED = "specedge:billed_dollars_per_second"
ACTIVE = "specedge:active_dollars_per_second:rate5m"
TOKENS = "specedge:committed_tokens:rate5m"
PRICE = "price_dollars_per_second"

NOW = (
    "Now, over five minutes",
    [
        number(
            "$ per million tokens, billed",
            "Every device with a price is paid for all of its time",
            "currencyUSD",
            "specedge:dollars_per_million_tokens_billed",
            decimals=2,
        ),
        number(
            "$ per million tokens, active",
            "Every device with a price is paid for its busy seconds only",
            "currencyUSD",
            "specedge:dollars_per_million_tokens_active",
            decimals=2,
        ),
        number("$ per hour, billed", "All devices with a price", "currencyUSD", f"3600 * {BILLED}", decimals=2),
        number("$ per hour, active", "All devices with a price", "currencyUSD", f"3600 * {ACTIVE}", decimals=2),
        number("Tokens per dollar, billed", "", "short", f"{TOKENS} / {BILLED}", decimals=0),
        number(
            "Share of the money at work",
            "Active over billed: the rest pays for idle devices",
            "percentunit",
            f"{ACTIVE} / {BILLED}",
            decimals=0,
        ),
    ],
)

COURSE = (
    "Course",
    [
        lines(
            "$ per million tokens",
            "Billed pays for all of a device's time, active for its busy seconds",
            "currencyUSD",
            Query("specedge:dollars_per_million_tokens_billed", "billed"),
            Query("specedge:dollars_per_million_tokens_active", "active"),
            width=12,
        ),
        lines(
            "$ per hour",
            "",
            "currencyUSD",
            Query(f"3600 * {BILLED}", "billed"),
            Query(f"3600 * {ACTIVE}", "active"),
            width=12,
        ),
        lines(
            "Verifiers at work",
            "Share of the time in which a step is under way",
            "percentunit",
            Query(f"instance:specedge_busy:ratio_rate5m{{{VERIFIER}}}", "{{instance}}"),
            maximum=1,
        ),
        lines(
            "Edge devices at work",
            "Share of the time in which a draft step is under way; the ten busiest",
            "percentunit",
            Query(f"topk(10, instance:specedge_edge_busy:ratio_rate5m{{{EDGE}}})", "{{instance}}"),
            maximum=1,
        ),
        lines(
            "Tokens per second",
            "All tokens of answers, and those of answers that met the SLO",
            "short",
            Query(TOKENS, "all tokens"),
            Query("specedge:goodput_tokens:rate5m", "goodput"),
        ),
    ],
)

PRICES = (
    "Prices",
    [
        table(
            "Verifiers",
            "What an hour of each device costs, by its price_per_hour",
            ("$ per hour", "currencyUSD", f"3600 * specedge_verifier_{PRICE}{{{VERIFIER}}}"),
            by=("instance",),
            height=5,
        ),
        table(
            "Edge agents",
            "What an hour of each device costs, by its price_per_hour",
            ("$ per hour", "currencyUSD", f"3600 * specedge_edge_{PRICE}{{{EDGE}}}"),
            by=("instance",),
            height=5,
        ),
    ],
)

BOARD = dashboard("specedge-cost", "SpecEdge / Cost", "What a token costs", [NOW, COURSE, PRICES])
