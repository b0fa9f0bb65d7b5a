"""What a window of metrics shows of a process: a panel for a verifier, another for an edge agent."""

from collections.abc import Iterable
from dataclasses import replace

from rich.columns import Columns
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from specedge_cli.top import wording
from specedge_cli.top.scrape import Window

Row = tuple[str, str]

MAX_DEPTH = 16


def panel_of(url: str, window: Window) -> Panel:
    """The panel of a process, by what it shows."""
    for kind, prefix, rows_of in (
        ("verifier", "specedge_verifier_", verifier_rows),
        ("edge agent", "specedge_edge_", edge_rows),
    ):
        info = f"{prefix}info"
        if window.after.sum(info) is not None:
            return _panel(f"{kind} {url}", window.after.label(info, "model"), rows_of(replace(window, prefix=prefix)))
    return failed_panel(url, "its metrics are neither a verifier's nor an edge agent's")


def waiting_panel(url: str) -> Panel:
    """Before the second reading: there are no rates yet."""
    return Panel(Text("reading ...", style="dim"), title=url, title_align="left")


def failed_panel(url: str, reason: str) -> Panel:
    """A process that cannot be read at the moment."""
    return Panel(Text(reason, style="red"), title=url, title_align="left", border_style="red")


def verifier_rows(window: Window) -> list[list[Row]]:
    """Names and values in groups, a column each."""
    per_verification = window.ratio("committed_tokens_total", "rows_total", kind="root")
    accepted = window.ratio("accepted_draft_nodes_total", "rows_total", kind="draft")
    hits = window.ratio("prefix_cache_hit_tokens_total", "prefix_cache_queried_tokens_total")
    busy = window.rate("step_seconds_sum", phase="all")
    rows, sessions = (wording.number(window.mean(name)) for name in ("step_rows", "step_sessions"))
    work = [
        ("sessions", _running_and_waiting(window, "sessions")),
        ("tokens/s", wording.number(window.rate("committed_tokens_total"))),
        ("tokens per verification", wording.number(per_verification)),
        ("accepted of verified nodes", wording.percent(accepted)),
        ("accepted at depth 1, 2, ...", wording.levels(_acceptance_by_depth(window))),
        ("prefix cache hits", wording.percent(hits)),
    ]
    device = [
        ("busy", wording.bar(busy)),
        ("KV blocks", wording.bar(window.now("kv_usage_ratio"))),
        ("step p50 / p95", _middle_and_tail(window, "step_seconds", phase="all")),
        ("rows, sessions per step", f"{rows}, {sessions}"),
        ("queue p50 / p95", _middle_and_tail(window, "queue_seconds")),
        ("up, down", _up_and_down(window, "wire_bytes_total")),
    ]
    rest = [
        ("preemptions/s", wording.number(window.rate("preemptions_total"))),
        ("refused/s", wording.ranked(window.rates_by("rejected_sessions_total", "reason"))),
        ("$ per million tokens", _cost(window, busy, "committed_tokens_total")),
    ]
    if tenants := window.rates_by("tenant_tokens_total", "tenant", kind="committed"):
        rest.append(("tokens/s by tenant", wording.ranked(tenants)))
    return [work, device, rest]


def edge_rows(window: Window) -> list[list[Row]]:
    """Names and values in groups, a column each."""
    accepted = window.ratio("accepted_draft_nodes_total", "verified_draft_nodes_total")
    busy = window.rate("draft_step_seconds_sum")
    users = [
        ("answers", _running_and_waiting(window, "requests")),
        ("tokens/s", wording.number(window.rate("generated_tokens_total"))),
        ("first token p50 / p95", _middle_and_tail(window, "time_to_first_token_seconds")),
        ("between tokens p50 / p95", _middle_and_tail(window, "inter_token_seconds")),
        ("ended/s", wording.ranked(window.rates_by("answers_total", "finished_reason"))),
        ("$ per million tokens", _cost(window, busy, "generated_tokens_total")),
    ]
    drafts = [
        ("drafter busy", wording.bar(busy)),
        ("draft step p50 / p95", _middle_and_tail(window, "draft_step_seconds")),
        ("accepted of verified nodes", wording.percent(accepted)),
        ("lead, tokens", wording.number(window.mean("draft_lead_tokens"))),
        ("nodes drafted/s", wording.number(window.rate("draft_nodes_total"))),
        ("nodes wasted/s", wording.ranked(window.rates_by("wasted_draft_nodes_total", "reason"))),
    ]
    network = [
        ("round trip p50 / p95", _middle_and_tail(window, "round_trip_seconds")),
        ("round p50 / p95", _middle_and_tail(window, "round_seconds")),
        ("of a round", wording.parts(window.rates_by("round_part_seconds_total", "part"))),
        ("up, down", _up_and_down(window, "verifier_bytes_total")),
        ("reconnects/s", wording.number(window.rate("reconnects_total"))),
        ("refused/s", wording.ranked(window.rates_by("refused_requests_total", "reason"))),
    ]
    return [users, drafts, network]


def _panel(title: str, model: str | None, groups: Iterable[list[Row]]) -> Panel:
    columns = []
    for rows in groups:
        column = Table.grid(padding=(0, 2))
        column.add_column(style="dim", no_wrap=True)
        column.add_column(no_wrap=True)
        for name, value in rows:
            column.add_row(name, value)
        columns.append(column)
    return Panel(Columns(columns, padding=(0, 4)), title=f"{title} [dim]{model or ''}[/]", title_align="left")


def _running_and_waiting(window: Window, what: str) -> str:
    running, waiting = (wording.count(window.now(f"{what}_{state}")) for state in ("running", "waiting"))
    return f"{running} running, {waiting} waiting"


def _middle_and_tail(window: Window, histogram: str, **labels: str) -> str:
    return " / ".join(wording.duration(window.quantile(histogram, q, **labels)) for q in (0.5, 0.95))


def _up_and_down(window: Window, name: str) -> str:
    return ", ".join(wording.traffic(window.rate(name, direction=direction)) for direction in ("up", "down"))


def _acceptance_by_depth(window: Window) -> list[float]:
    """Share of the nodes verified at depth 1, 2, ... that were accepted, as far down as there were any."""
    shares: list[float] = []
    for depth in range(1, MAX_DEPTH + 1):
        verified = window.gained("verified_draft_nodes_by_depth_total", depth=str(depth))
        if not verified:
            break
        accepted = window.gained("accepted_draft_nodes_by_depth_total", depth=str(depth)) or 0.0
        shares.append(min(accepted / verified, 1.0))
    return shares


def _cost(window: Window, busy: float | None, tokens: str) -> str:
    """Of this process's own device."""
    per_second, rate = window.now("price_dollars_per_second"), window.rate(tokens)
    if not per_second or not rate:
        return wording.NOTHING
    billed = 1e6 * per_second / rate
    return f"{billed:.3g} billed, {billed * (busy or 0.0):.3g} active"
