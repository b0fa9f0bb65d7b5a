"""`specedge top`: what is read out of two pages of metrics, and what is shown of it."""

import http.server
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from rich.console import Console

from specedge.errors import SettingsError
from specedge_cli.top import wording
from specedge_cli.top.command import metrics_url, top
from specedge_cli.top.panels import panel_of
from specedge_cli.top.scrape import Reading, ScrapeFailed, Window, parse, scrape


def window(before: str, after: str, seconds: float = 2.0) -> Window:
    return Window(parse(before, 10.0), parse(after, 10.0 + seconds))


def shown(window: Window) -> str:
    console = Console(file=io.StringIO(), width=180, color_system=None)
    console.print(panel_of("http://host:1/metrics", window))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_counters_become_rates_and_a_restarted_one_counts_from_zero() -> None:
    both = window('a_total{r="x"} 10\na_total{r="y"} 5\n', 'a_total{r="x"} 30\na_total{r="y"} 5\n')
    assert both.rate("a_total") == 10.0
    assert both.rates_by("a_total", "r") == {"x": 10.0}
    assert both.rate("b_total") is None
    assert window("a_total 100\n", "a_total 4\n").gained("a_total") == 4.0
    assert window("", "a_total 4\n").gained("a_total") == 4.0


def test_names_have_the_prefix_of_their_process() -> None:
    readings = window("p_done_total 1\np_begun_total 1\n", "p_done_total 4\np_begun_total 3\n")
    assert Window(readings.before, readings.after, "p_").ratio("done_total", "begun_total") == 1.5
    assert Window(readings.before, readings.after, "q_").ratio("done_total", "begun_total") is None


def test_quantiles_are_those_of_the_window_and_linear_in_their_bucket() -> None:
    registry = CollectorRegistry()
    histogram = Histogram("h", "h", buckets=(1.0, 2.0, 4.0), registry=registry)
    for _ in range(50):
        histogram.observe(0.5)  # before the window: of no account
    before = generate_latest(registry).decode()
    for value in (1.5, 1.5, 3.0, 3.0):
        histogram.observe(value)
    both = window(before, generate_latest(registry).decode())
    assert both.quantile("h", 0.5) == 2.0
    assert both.quantile("h", 0.25) == 1.5
    assert both.quantile("h", 1.0) == 4.0
    assert both.mean("h") == 2.25
    histogram.observe(9.0)
    assert window(before, generate_latest(registry).decode()).quantile("h", 1.0) == 4.0, (
        "the highest bound that is known"
    )
    assert window(before, before).quantile("h", 0.5) is None
    assert both.quantile("nothing", 0.5) is None


def verifier_page(tokens: int, roots: int, nodes: int, accepted: int, busy_s: float) -> str:
    registry = CollectorRegistry()
    name = "specedge_verifier_"
    Gauge(f"{name}info", "", ["version", "model"], registry=registry).labels("1", "large").set(1)
    Gauge(f"{name}kv_usage_ratio", "", registry=registry).set(0.5)
    Gauge(f"{name}price_dollars_per_second", "", registry=registry).set(0.001)
    Counter(f"{name}committed_tokens", "", registry=registry).inc(tokens)
    rows = Counter(f"{name}rows", "", ["kind"], registry=registry)
    rows.labels("root").inc(roots)
    rows.labels("draft").inc(nodes)
    Counter(f"{name}accepted_draft_nodes", "", registry=registry).inc(accepted)
    verified = Counter(f"{name}verified_draft_nodes_by_depth", "", ["depth"], registry=registry)
    taken = Counter(f"{name}accepted_draft_nodes_by_depth", "", ["depth"], registry=registry)
    for depth, counts in enumerate(((nodes, accepted), (nodes, 0)), start=1):
        verified.labels(str(depth)).inc(counts[0])
        taken.labels(str(depth)).inc(counts[1])
    steps = Histogram(f"{name}step_seconds", "", ["phase"], registry=registry, buckets=(1.0,)).labels("all")
    steps.observe(busy_s)
    tenants = Counter(f"{name}tenant_tokens", "", ["tenant", "kind"], registry=registry)
    tenants.labels("acme", "committed").inc(tokens)
    tenants.labels("acme", "drafted").inc(7 * tokens)
    return generate_latest(registry).decode()


def test_a_verifier_is_shown_with_what_it_did_between_the_readings() -> None:
    text = shown(window(verifier_page(0, 0, 0, 0, 0.0), verifier_page(600, 200, 400, 300, 0.5)))
    for piece in (
        "verifier http://host:1/metrics large",
        "tokens/s                     300",
        "tokens per verification      3",
        "accepted of verified nodes   75 %",
        "▇▁",  # three quarters at depth 1, nothing at depth 2
        "███░░░░░░░░░  25 %",  # half a second of two
        "██████░░░░░░  50 %",
        "3.33 billed, 0.833 active",
        "acme 300",
    ):
        assert piece in text, text


def test_a_page_of_something_else_is_named_as_such() -> None:
    assert "neither a verifier's nor an edge agent's" in shown(window("up 1\n", "up 1\n"))


@pytest.mark.parametrize(
    ("target", "url"),
    [
        ("host:9464", "http://host:9464/metrics"),
        ("http://host:9464", "http://host:9464/metrics"),
        ("https://host/a/metrics", "https://host/a/metrics"),
        ("[::1]:9464/", "http://[::1]:9464/metrics"),
    ],
)
def test_a_target_is_an_address_or_a_url(target: str, url: str) -> None:
    assert metrics_url(target) == url


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ftp://host"], "'ftp://host' is neither HOST:PORT nor an http URL"),
        (["--interval", "0"], "--interval 0 is not between 0.1 and 3600 seconds"),
        (["--timeout", "nan"], "--timeout nan is not between 0.1 and 60 seconds"),
        ([f"h:{port}" for port in range(1, 34)], "33 targets are given, and 32 are the most"),
    ],
)
def test_bad_arguments_are_named_with_their_limits(arguments: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        top(arguments)


@contextmanager
def page_server(status: int, body: bytes) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/metrics"
        finally:
            server.shutdown()
            thread.join()


def test_a_process_out_of_reach_is_shown_and_fails_only_itself() -> None:
    console = Console(file=io.StringIO(), width=180, color_system=None)
    with page_server(200, verifier_page(1, 1, 1, 1, 0.1).encode()) as good, page_server(503, b"") as bad:
        assert top([good, bad, "127.0.0.1:1", "--once"], console, sleep=lambda _: None) == 1
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "large" in text and "HTTP 503" in text and "no answer" in text


@pytest.mark.parametrize("body", [b"<html>", b"a{ 1"])
def test_what_are_no_metrics_is_said_to_be_none(body: bytes) -> None:
    with page_server(200, body) as url, pytest.raises(ScrapeFailed, match="no metrics"):
        scrape(url, 5.0)


def test_numbers_fit_a_narrow_column() -> None:
    assert [wording.number(value) for value in (None, 0.0, 0.01234, 12.34, 1234.5)] == [
        "-",
        "0",
        "0.0123",
        "12.3",
        "1,234",
    ]
    assert [wording.duration(value) for value in (None, 0.00042, 0.25, 61.0)] == ["-", "0.42 ms", "250 ms", "61.00 s"]
    assert [wording.traffic(value) for value in (12.0, 4_200.0, 3e6)] == ["12 B/s", "4.2 kB/s", "3 MB/s"]
    assert wording.ranked({"a": 1.0, "b": 3.0, "c": 2.0, "d": 0.5}) == "b 3, c 2, a 1, others 0.5"
    assert wording.bar(2.0).startswith("████████████ 200")
    assert Reading(0.0).sum("nothing") is None
