"""What the verifiers do: steps, batch, KV, queue, preemption, tenants."""

from panels import RED, VERIFIER, YELLOW, Query, dashboard, heatmap, lines, number, table
from promql import mean, quantile, rate, ratio, total

STEP = "specedge_verifier_step_seconds"
ALL = f'{VERIFIER}, phase="all"'
REJECTED = "specedge_verifier_rejected_sessions_total"
TENANT_TOKENS = "specedge_verifier_tenant_tokens_total"
PARTS = f'{VERIFIER}, phase!="all"'
COMMITTED = total(TENANT_TOKENS, f'{VERIFIER}, kind="committed"', "tenant")
VERIFIED = total(TENANT_TOKENS, f'{VERIFIER}, kind="verified"', "tenant")

NOW = (
    "Now",
    [
        number(
            "Sessions running", "In the running set", "short", f"sum (specedge_verifier_sessions_running{{{VERIFIER}}})"
        ),
        number(
            "Sessions waiting",
            "For a place or for KV blocks",
            "short",
            f"sum (specedge_verifier_sessions_waiting{{{VERIFIER}}})",
            limits=[(1, YELLOW), (32, RED)],
            decimals=0,
        ),
        number("Steps per second", "Engine steps of all verifiers", "short", total(f"{STEP}_count", ALL), decimals=1),
        number("Step, p95", "Seconds of one engine step", "s", quantile(0.95, STEP, ALL)),
        number(
            "KV blocks held",
            "The fullest verifier",
            "percentunit",
            f"max (specedge_verifier_kv_usage_ratio{{{VERIFIER}}})",
            limits=[(0.8, YELLOW), (0.95, RED)],
        ),
        number(
            "Busy",
            "Share of the time in which a step is under way; the busiest verifier",
            "percentunit",
            f"max ({rate(f'{STEP}_sum', ALL)})",
        ),
    ],
)

STEPS = (
    "Steps and batch",
    [
        lines(
            "Where a step's time goes",
            "Mean seconds of each phase",
            "s",
            Query(mean(STEP, PARTS, "phase"), "{{phase}}"),
            is_stacked=True,
        ),
        heatmap("Steps by duration", "", "s", f"sum by (le) (increase({STEP}_bucket{{{ALL}}}[$__rate_interval]))"),
        lines(
            "Rows per second, by kind",
            "Tokens computed: of prompts (prefill), last committed ones (root), draft nodes (draft)",
            "short",
            Query(total("specedge_verifier_rows_total", VERIFIER, "kind"), "{{kind}}"),
            is_stacked=True,
        ),
        lines(
            "Rows of a step",
            "The batch in tokens",
            "short",
            Query(mean("specedge_verifier_step_rows", VERIFIER), "mean"),
            Query(quantile(0.95, "specedge_verifier_step_rows", VERIFIER), "p95"),
        ),
        lines(
            "Sessions of a step",
            "The batch in sessions",
            "short",
            Query(mean("specedge_verifier_step_sessions", VERIFIER), "mean"),
            Query(quantile(0.95, "specedge_verifier_step_sessions", VERIFIER), "p95"),
        ),
        lines(
            "Busy",
            "Share of the time in which a step is under way, by verifier",
            "percentunit",
            Query(f"sum by (instance) ({rate(f'{STEP}_sum', ALL)})", "{{instance}}"),
            maximum=1,
        ),
    ],
)

QUEUE = (
    "Queue and KV",
    [
        lines(
            "Sessions",
            "Running and waiting",
            "short",
            Query(f"sum (specedge_verifier_sessions_running{{{VERIFIER}}})", "running"),
            Query(f"sum (specedge_verifier_sessions_waiting{{{VERIFIER}}})", "waiting"),
            is_stacked=True,
        ),
        lines(
            "Wait for a step",
            "Seconds a session is ready before its next step begins",
            "s",
            *(
                Query(quantile(share, "specedge_verifier_queue_seconds", VERIFIER), f"p{100 * share:g}")
                for share in (0.5, 0.95)
            ),
        ),
        lines(
            "Wait for admission",
            "Seconds from a session's arrival until its first step begins",
            "s",
            *(
                Query(quantile(share, "specedge_verifier_admission_seconds", VERIFIER), f"p{100 * share:g}")
                for share in (0.5, 0.95)
            ),
        ),
        lines(
            "KV blocks",
            "Held by sessions, and free; the prefix cache finds cached ones among both",
            "short",
            Query(f"sum by (state) (specedge_verifier_kv_blocks{{{VERIFIER}}})", "{{state}}"),
            Query(f"sum (specedge_verifier_kv_cached_blocks{{{VERIFIER}}})", "cached"),
        ),
        lines(
            "Prefix cache hits",
            "Share of the tokens looked up that were found",
            "percentunit",
            Query(
                ratio(
                    total("specedge_verifier_prefix_cache_hit_tokens_total", VERIFIER),
                    total("specedge_verifier_prefix_cache_queried_tokens_total", VERIFIER),
                ),
                "found",
            ),
            maximum=1,
        ),
        lines(
            "Preemptions and evictions per second",
            "Preempted sessions compute their text again; evicted blocks are lost to the prefix cache",
            "ops",
            Query(total("specedge_verifier_preemptions_total", VERIFIER), "preemptions"),
            Query(total("specedge_verifier_kv_evictions_total", VERIFIER), "evictions"),
        ),
        lines(
            "Accepted tokens whose KV was moved, per second",
            "Nothing moves while the most probable path wins",
            "short",
            Query(total("specedge_verifier_kv_moved_tokens_total", VERIFIER), "moved"),
        ),
        lines(
            "Live draft nodes",
            "Of running sessions, waiting to be verified",
            "short",
            Query(f"sum by (instance) (specedge_verifier_live_draft_nodes{{{VERIFIER}}})", "{{instance}}"),
        ),
        lines(
            "Sessions refused or failed, per minute",
            "By gRPC status; those that never occurred are left out",
            "short",
            Query(
                f"60 * ({total(REJECTED, VERIFIER, 'reason')} and on (reason) sum by (reason) ({REJECTED}) > 0)",
                "{{reason}}",
            ),
        ),
    ],
)

TENANTS = (
    "Tenants",
    [
        lines(
            "Tokens committed per second, by tenant",
            "Tokens of answers; the ten largest",
            "short",
            Query(f"topk(10, {COMMITTED})", "{{tenant}}"),
            is_stacked=True,
        ),
        lines(
            "Tokens verified per second, by tenant",
            "Roots and draft nodes, the work that a tenant causes; the ten largest",
            "short",
            Query(f"topk(10, {VERIFIED})", "{{tenant}}"),
            is_stacked=True,
        ),
        lines(
            "KV blocks held, by tenant",
            "A block that several sessions share counts for each; the ten largest",
            "short",
            Query(f"topk(10, sum by (tenant) (specedge_verifier_tenant_kv_blocks{{{VERIFIER}}}))", "{{tenant}}"),
        ),
        table(
            "Tenants",
            "One row for each",
            *(
                (f"{kind} tokens per second", "short", total(TENANT_TOKENS, f'{VERIFIER}, kind="{kind}"', "tenant"))
                for kind in ("prompt", "committed", "verified", "drafted")
            ),
            *(
                (
                    f"sessions {state}",
                    "short",
                    f'sum by (tenant) (specedge_verifier_tenant_sessions{{{VERIFIER}, state="{state}"}})',
                )
                for state in ("running", "waiting")
            ),
            by=("tenant",),
            width=24,
            height=6,
        ),
    ],
)

RUNS = (
    "What computes",
    [
        table(
            "Models",
            "Engine, attention, number format and device of each model",
            ("runs", "bool_yes_no", f"specedge_verifier_execution_info{{{VERIFIER}}}"),
            by=("instance",),
            width=24,
            height=5,
        ),
    ],
)

BOARD = dashboard(
    "specedge-verifier",
    "SpecEdge / Verifier",
    "Steps, batch, KV, queue, preemption and tenants",
    [NOW, STEPS, QUEUE, TENANTS, RUNS],
)
