"""Every panel of every dashboard, every variable and every rule, asked of a Prometheus that scrapes real load."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from monitored import PROMETHEUS, Monitored

BOARDS = sorted((PROMETHEUS.parent / "grafana" / "dashboards").glob("*.json"))
VARIABLES = {"$__rate_interval": "10s", "$verifier": ".*", "$edge": ".*", "$model": ".*"}
RULE_FILES = sorted(PROMETHEUS.glob("rules/*.rules.yml"))


def filled(expr: str) -> str:
    """As Grafana sends it, with all variables at All."""
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    assert not re.search(r"\$[a-z_]", expr)
    return expr


def has_values(series: list[Any]) -> bool:
    """Whether anything would be drawn: Grafana leaves gaps for what is not a number."""
    values = [pair[1] for found in series for pair in found.get("values", [found.get("value")])]
    return any(math.isfinite(float(value)) for value in values)


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_every_query_of_every_panel_returns_data(live: Monitored, path: Path) -> None:
    empty = []
    for panel in json.loads(path.read_text())["panels"]:
        for target in panel.get("targets", []):
            expr = filled(target["expr"])
            found = live.instant(expr) if target["instant"] else live.course(expr)
            if not has_values(found):
                empty.append(f"{panel['title']}: {expr}")
    assert not empty, "\n".join(empty)


def test_every_variable_has_values(live: Monitored) -> None:
    wanted = {"model": "specedge-demo", "verifier": live.verifier.metrics_url, "edge": live.edge.metrics_url}
    for variable in json.loads(BOARDS[0].read_text())["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((?P<series>.+), (?P<label>\w+)\)", variable["query"]["query"])
            assert found is not None
            values = live.api(f"label/{found['label']}/values", **{"match[]": filled(found["series"])})
            assert len(values) == 1 and values[0] in wanted[variable["name"]]


def test_every_rule_is_evaluated_and_every_recorded_series_has_values(live: Monitored) -> None:
    rules = [rule for group in live.api("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}
    recorded = [rule["name"] for rule in rules if rule["type"] == "recording"]
    written = [
        rule for path in RULE_FILES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]
    ]
    assert len(rules) == len(written) and recorded
    assert [name for name in recorded if not has_values(live.instant(name))] == []


def test_both_processes_are_scraped(live: Monitored) -> None:
    targets = live.api("targets")["activeTargets"]
    assert sorted(target["labels"]["job"] for target in targets) == ["specedge-edge", "specedge-verifier"]
    assert [target["lastError"] for target in targets] == ["", ""]


def test_what_is_shown_is_clean(live: Monitored) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool; Debian and Ubuntu: apt install prometheus")
    for url in (live.verifier.metrics_url, live.edge.metrics_url):
        shown = httpx.get(url, trust_env=False, headers={"accept": "text/plain"}).text
        result = subprocess.run(
            ["promtool", "check", "metrics"], input=shown, capture_output=True, text=True, timeout=60
        )
        complaints = (result.stdout + result.stderr).splitlines()
        # The colon belongs to vLLM's names and is the one thing that is said about them.
        assert [
            line for line in complaints if not re.fullmatch(r"vllm:\w+ metric names should not contain ':'", line)
        ] == []
