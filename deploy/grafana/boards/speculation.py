"""What drafts are worth: acceptance by depth, tokens per verification, waste, the draft's lead."""

from panels import EDGE, VERIFIER, YELLOW, Query, bars, dashboard, heatmap, lines, number
from promql import mean, padded, quantile, ratio, share, total

ROOTS = total("specedge_verifier_rows_total", f'{VERIFIER}, kind="root"')
VERIFIED = total("specedge_verifier_rows_total", f'{VERIFIER}, kind="draft"')
ACCEPTED = total("specedge_verifier_accepted_draft_nodes_total", VERIFIER)
TREES = total("specedge_verifier_verifications_total", VERIFIER)
COMMITTED = total("specedge_verifier_committed_tokens_total", VERIFIER)
VERDICTS = "specedge_verifier_verdicts_total"
AHEAD = ratio(total(VERDICTS, f'{VERIFIER}, next="drafted"'), total(VERDICTS, VERIFIER))
LEAD = "specedge_edge_draft_lead_tokens"
DEPTHS = 'depth=~"[1-9]|1[0-2]"'
BY_DEPTH = "draft_nodes_by_depth_total"
SURVIVAL = share(total(f"specedge_verifier_accepted_{BY_DEPTH}", f"{VERIFIER}, {DEPTHS}", "depth"), TREES)
AT_DEPTH = ratio(
    total(f"specedge_verifier_accepted_{BY_DEPTH}", f"{VERIFIER}, {DEPTHS}", "depth"),
    total(f"specedge_verifier_verified_{BY_DEPTH}", f"{VERIFIER}, {DEPTHS}", "depth"),
)

NOW = (
    "Now",
    [
        number(
            "Tokens per verification",
            "What a verification commits on average, its own token included; plain decoding commits 1",
            "short",
            ratio(COMMITTED, ROOTS),
            limits=[(1.5, "green")],
            base=YELLOW,
            decimals=2,
        ),
        number(
            "Acceptance",
            "Share of the verified draft nodes that became tokens; in a wide tree most nodes are rivals of each other",
            "percentunit",
            ratio(ACCEPTED, VERIFIED),
            decimals=1,
        ),
        number(
            "Nodes per tree", "Draft nodes verified at once, per session", "short", ratio(VERIFIED, TREES), decimals=1
        ),
        number(
            "Accepted length",
            "Drafted tokens accepted per tree, without the target's own",
            "short",
            ratio(ACCEPTED, TREES),
            decimals=2,
        ),
        number(
            "Draft already there",
            "Share of verdicts after which live draft nodes were left, so that the next verification need not wait "
            "for a round trip",
            "percentunit",
            AHEAD,
            decimals=0,
        ),
        number(
            "Draft nodes wasted",
            "Share of the nodes added to draft tries that ended as waste",
            "percentunit",
            ratio(
                total("specedge_edge_wasted_draft_nodes_total", EDGE),
                total("specedge_edge_draft_nodes_total", EDGE),
            ),
            decimals=0,
        ),
    ],
)

ACCEPTANCE = (
    "Acceptance",
    [
        bars(
            "Trees accepted to this depth",
            "Share of the verified trees whose accepted path reaches each depth",
            "percentunit",
            Query(padded("depth", SURVIVAL), "depth {{depth}}"),
            maximum=1,
        ),
        bars(
            "Nodes accepted at this depth",
            "Share of the draft nodes verified at each depth that were accepted",
            "percentunit",
            Query(padded("depth", AT_DEPTH), "depth {{depth}}"),
            maximum=1,
        ),
        lines(
            "Acceptance at depths 1, 2, 4 and 8",
            "Share of the draft nodes verified at a depth that were accepted",
            "percentunit",
            Query(AT_DEPTH.replace(DEPTHS, 'depth=~"1|2|4|8"'), "depth {{depth}}"),
            maximum=1,
        ),
        lines(
            "Tokens per verification",
            "By verifier",
            "short",
            Query(
                ratio(
                    total("specedge_verifier_committed_tokens_total", VERIFIER, "instance"),
                    total("specedge_verifier_rows_total", f'{VERIFIER}, kind="root"', "instance"),
                ),
                "{{instance}}",
            ),
        ),
        lines(
            "Acceptance by edge agent",
            "The ten lowest: a draft model that does not fit its target shows here",
            "percentunit",
            Query(
                "bottomk(10, "
                + ratio(
                    total("specedge_edge_accepted_draft_nodes_total", EDGE, "instance"),
                    total("specedge_edge_verified_draft_nodes_total", EDGE, "instance"),
                )
                + ")",
                "{{instance}}",
            ),
            maximum=1,
        ),
        lines(
            "Draft nodes per second",
            "Added to tries on the edges, sent, verified, accepted",
            "short",
            Query(total("specedge_edge_draft_nodes_total", EDGE), "drafted"),
            Query(total("specedge_edge_drafted_nodes_total", EDGE), "sent"),
            Query(VERIFIED, "verified"),
            Query(ACCEPTED, "accepted"),
        ),
    ],
)

LEADING = (
    "Lead and waste",
    [
        heatmap(
            "Lead of the draft",
            "How many tokens the draft reaches beyond the committed text after a verdict",
            "short",
            f"sum by (le) (increase({LEAD}_bucket{{{EDGE}}}[$__rate_interval]))",
        ),
        lines(
            "Lead of the draft over the verifier",
            "Tokens beyond the committed text after a verdict; 0 means that the verifier has to wait for the edge",
            "short",
            Query(mean(LEAD, EDGE), "mean"),
            Query(quantile(0.5, LEAD, EDGE), "p50"),
            Query(quantile(0.9, LEAD, EDGE), "p90"),
        ),
        lines(
            "Verdicts per second, by what comes next",
            "drafted: live nodes are left and are verified at once; bare: the next step is plain if no draft arrives",
            "ops",
            Query(total(VERDICTS, VERIFIER, "next"), "{{next}}"),
            is_stacked=True,
        ),
        lines(
            "Wasted draft nodes per second, by reason",
            "rejected by a verdict, trimmed by the budget, below a wrong guess, or released with their session",
            "short",
            Query(total("specedge_edge_wasted_draft_nodes_total", EDGE, "reason"), "{{reason}}"),
            is_stacked=True,
        ),
        lines(
            "Draft nodes that were looked up, per second",
            "Added to tries without computing anything, and those of them that were committed, by source",
            "short",
            Query(total("specedge_edge_lookup_draft_nodes_total", EDGE, "source"), "drafted from {{source}}"),
            Query(
                total("specedge_edge_confirmed_lookup_draft_nodes_total", EDGE, "source"), "committed from {{source}}"
            ),
        ),
        lines(
            "Fallbacks to plain decoding per minute",
            "Sessions that rest because drafting does not pay, answers with refused drafts, sessions without slots",
            "short",
            Query(f"60 * {total('specedge_edge_draft_rests_total', EDGE)}", "rests"),
            Query(f"60 * {total('specedge_edge_drafts_refused_total', EDGE)}", "refused"),
            Query(f"60 * {total('specedge_edge_draft_sessions_starved_total', EDGE)}", "no draft KV slots"),
        ),
        lines(
            "Draft step",
            "Seconds of one draft step of all sessions of an edge",
            "s",
            *(
                Query(quantile(rank, "specedge_edge_draft_step_seconds", EDGE), f"p{100 * rank:g}")
                for rank in (0.5, 0.95)
            ),
        ),
        lines(
            "Guesses per second, by outcome",
            "Expansion heads of the published modes of proactive drafting; streamed drafting makes none",
            "ops",
            Query(total("specedge_edge_draft_guesses_total", EDGE, "outcome"), "{{outcome}}"),
        ),
        lines(
            "Rows and sessions of a draft step",
            "Means: how well local sessions share forwards",
            "short",
            Query(
                ratio(
                    total("specedge_edge_draft_rows_total", EDGE), total("specedge_edge_draft_step_seconds_count", EDGE)
                ),
                "rows",
            ),
            Query(
                ratio(
                    total("specedge_edge_draft_session_steps_total", EDGE),
                    total("specedge_edge_draft_step_seconds_count", EDGE),
                ),
                "sessions",
            ),
        ),
    ],
)

BOARD = dashboard(
    "specedge-speculation",
    "SpecEdge / Speculation",
    "What drafts are worth",
    [NOW, ACCEPTANCE, LEADING],
)
