"""Metrics, rules, dashboards and their pages belong together: what one names, another has."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric

ROOT = Path(__file__).parents[2]
PROMETHEUS, GRAFANA = ROOT / "deploy" / "prometheus", ROOT / "deploy" / "grafana"
RULE_FILES = sorted(PROMETHEUS.glob("rules/*.rules.yml"))
TABLE = runpy.run_path(str(ROOT / "docs" / "metrics_table.py"))

UNITS = {
    "seconds": "second",
    "bytes": "byte",
    "tokens": "token",
    "dollars": "dollar",
    "blocks": "block",
    "nodes": "node",
}


@cache
def registries() -> dict[str, CollectorRegistry]:
    return {"edge": TABLE["edge_registry"](), "verifier": TABLE["verifier_registry"]()}


def families() -> list[Metric]:
    return [family for registry in registries().values() for family in registry.collect()]


def sample_names() -> set[str]:
    """Everything that can be queried."""
    names = set()
    for family in families():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        names |= {family.name + suffix for suffix in suffixes}
    return names


@cache
def rules() -> list[dict[str, Any]]:
    return [
        rule for path in RULE_FILES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]
    ]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def queries() -> list[str]:
    boards = [json.loads(path.read_text()) for path in sorted(GRAFANA.glob("dashboards/*.json"))]
    panels = [panel for board in boards for panel in board["panels"]]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def test_the_page_of_metrics_is_what_the_code_has() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert page == TABLE["page"](page), "run python docs/metrics_table.py"


def test_the_dashboards_are_what_their_builder_writes() -> None:
    result = run(sys.executable, str(GRAFANA / "build.py"), "--check")
    assert result.returncode == 0, result.stderr


def test_every_metric_says_what_it_is_and_in_which_unit() -> None:
    for family in families():
        assert family.documentation, family.name
        own = family.name.startswith("specedge_")
        ending = family.name.rpartition("_")[2]
        unit = "unix time" if family.name.endswith("_timestamp_seconds") else UNITS.get(ending, "")
        if own:
            assert unit in family.documentation.lower(), family.name


def test_labels_take_few_values() -> None:
    for family in families():
        labels = {tuple(sorted((k, v) for k, v in s.labels.items() if k != "le")) for s in family.samples}
        assert len(labels) <= 32, family.name
        names = {name for sample in family.samples for name in sample.labels}
        assert not names & {"session", "request", "request_id", "client", "address", "drafter", "prompt"}, family.name


@pytest.mark.parametrize("side", ["edge", "verifier"])
def test_promtool_finds_nothing_but_the_colon_of_vllms_names(side: str) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool; Debian and Ubuntu: apt install prometheus")
    result = run("promtool", "check", "metrics", input=generate_latest(registries()[side]).decode())
    complaints = (result.stdout + result.stderr).splitlines()
    assert complaints, "the colon is always complained about"
    assert [
        line for line in complaints if not re.fullmatch(r"vllm:\w+ metric names should not contain ':'", line)
    ] == []


def test_vllms_names_are_complete_between_both_sides() -> None:
    names = {family.name.removeprefix("vllm:") for family in families() if family.name.startswith("vllm:")}
    assert names >= {
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "prefix_cache_queries",
        "prefix_cache_hits",
        "num_preemptions",
        "prompt_tokens",
        "generation_tokens",
        "spec_decode_num_drafts",
        "spec_decode_num_draft_tokens",
        "spec_decode_num_accepted_tokens",
        "spec_decode_num_accepted_tokens_per_pos",
    }


def test_queries_and_rules_name_only_metrics_that_exist() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    known = sample_names() | recorded
    for expr in [*queries(), *(rule["expr"] for rule in rules())]:
        named = set(re.findall(r"\b(?:specedge_\w+|(?:specedge|instance):[\w:]+)", expr))
        assert named or "up{" in expr, expr
        assert named <= known, f"{named - known} in {expr}"


def test_every_alert_has_what_its_reader_needs() -> None:
    runbooks = (ROOT / "docs" / "runbooks.md").read_text()
    headings = re.findall(r"^## (\w+)$", runbooks, re.MULTILINE)
    assert headings == [alert["alert"] for alert in alerts()], "one heading for each, in the same order"
    for alert in alerts():
        assert alert["for"]
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert set(alert["annotations"]) == {"summary", "runbook_url"}
        assert alert["annotations"]["runbook_url"] == f"docs/runbooks.md#{alert['alert'].lower()}"
    for section in runbooks.split("\n## ")[1:]:
        assert [word for word in ("**Means:**", "**Look at:**", "**Do:**") if word not in section] == [], section[:40]


def test_every_alert_is_tested_firing_and_quiet() -> None:
    tests = yaml.safe_load((PROMETHEUS / "rules" / "alerts.test.yml").read_text())["tests"]
    outcomes = {(case["alertname"], bool(case["exp_alerts"])) for test in tests for case in test["alert_rule_test"]}
    assert outcomes == {(alert["alert"], fires) for alert in alerts() for fires in (True, False)}


@pytest.mark.parametrize(
    "command",
    [
        ("check", "rules", *(f"rules/{path.name}" for path in RULE_FILES)),
        ("test", "rules", "rules/recording.test.yml", "rules/alerts.test.yml"),
        ("check", "config", "prometheus.yml"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_promtool_accepts_configuration_and_rules(command: tuple[str, ...]) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool; Debian and Ubuntu: apt install prometheus")
    result = run("promtool", *command, cwd=PROMETHEUS)
    assert result.returncode == 0, result.stdout + result.stderr


def test_grafana_is_told_where_everything_is() -> None:
    source = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"][0]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    provider = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "specedge.yml").read_text())["providers"][0]
    assert provider["type"] == "file"
    boards = [json.loads(path.read_text()) for path in sorted(GRAFANA.glob("dashboards/*.json"))]
    assert len({board["uid"] for board in boards}) == len(boards) >= 5
    for board in boards:
        names = [variable["name"] for variable in board["templating"]["list"]]
        assert names == ["datasource", "model", "verifier", "edge"]
