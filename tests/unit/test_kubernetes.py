"""The manifests: every overlay renders and is valid, and names settings, ports, files and commands that exist."""

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from copy import deepcopy
from functools import reduce
from itertools import product
from operator import getitem
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kubernetes_support import (
    CUSTOM,
    FOLDER,
    HAS_KUBECTL,
    OVERLAYS,
    RECORDS,
    Resource,
    by_kubectl,
    container_of,
    custom_validator,
    digest,
    environment_of,
    find,
    pod_of,
    record,
    recorded,
    rendered,
    validate,
    workloads,
)

from edge_agent.settings import EdgeSettings
from specedge_cli.main import main
from specedge_cli.processes import load_edge_settings, load_verifier_settings
from specedge_verifier.settings import VerifierSettings

ROOT = Path(__file__).parents[2]
DOCKERFILES = {"specedge-verifier": "Dockerfile.server", "specedge-edge": "Dockerfile.edge"}
OLDEST, NEWEST = "1.30", "1.37"
END_S = 2.0
"""Seconds that a process may take between the end of its drain and its own end."""

each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPECEDGE_CONFIG", raising=False)


def image_variables(dockerfile: str) -> dict[str, str]:
    """The settings that an image brings."""
    return dict(re.findall(r"(SPECEDGE_\w+)=(\S+)", (ROOT / dockerfile).read_text()))


def settings_of(
    overlay: str, workload: Resource, monkeypatch: pytest.MonkeyPatch
) -> VerifierSettings | EdgeSettings | None:
    """What the process would run with; None where it is not ours."""
    name = workload["metadata"]["name"]
    if name not in DOCKERFILES:
        return None
    with monkeypatch.context() as context:
        variables = image_variables(DOCKERFILES[name]) | environment_of(overlay, workload)
        for variable, value in variables.items():
            context.setenv(variable, value)
        return load_verifier_settings([]) if name == "specedge-verifier" else load_edge_settings([])


@each_overlay
def test_the_record_is_what_kubectl_makes(overlay: str, request: pytest.FixtureRequest) -> None:
    if HAS_KUBECTL:
        if request.config.getoption("--update-golden"):
            record(overlay)
        assert recorded(overlay) == by_kubectl(overlay), "review it and run pytest --update-golden"
    named = (RECORDS / f"{overlay}.yaml").read_text().partition("\n")[0]
    assert named == f"# {digest()}", "files in deploy changed: run pytest --update-golden where there is a kubectl"


@pytest.mark.parametrize(("overlay", "version"), [*((overlay, NEWEST) for overlay in OVERLAYS), ("production", OLDEST)])
def test_an_overlay_is_valid(overlay: str, version: str) -> None:
    resources = rendered(overlay)
    for resource in resources:
        validate(resource, version)
    identities = [(resource["kind"], resource["metadata"]["name"]) for resource in resources]
    assert len(set(identities)) == len(identities)


def of_kind(kind: str) -> Resource:
    """A copy of one of the manifests' resources that another project defines."""
    found = next(each for overlay in OVERLAYS for each in rendered(overlay) if each["kind"] == kind)
    return deepcopy(found)


def paths(value: Any, here: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every entry of nested mappings and lists."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*here, key)
        yield from paths(entry, (*here, key))


FREE = {"matchLabels", "labels", "annotations"}
"""Maps whose keys are anyone's."""


@pytest.mark.parametrize("kind", CUSTOM)
def test_a_custom_resource_with_a_slip_anywhere_is_not_valid(kind: str) -> None:
    resource, validator = of_kind(kind), custom_validator(kind)
    assert validator.is_valid(resource)
    for *parents, key in paths(resource):
        wrong = deepcopy(resource)
        holder = reduce(getitem, parents, wrong)
        value = holder[key]
        holder[key] = 7 if isinstance(value, str) else "a text"
        assert not validator.is_valid(wrong), f"{[*parents, key]} of a wrong type"
        if isinstance(key, str) and not FREE & set(parents):
            del holder[key]
            holder[f"{key}s"] = value
            assert not validator.is_valid(wrong), f"{[*parents, key]} misspelt"
    resource["spec"]["misspelt"] = True
    with pytest.raises(jsonschema.ValidationError, match="misspelt"):
        validate(resource, NEWEST)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("components/*/secrets.example.yaml")), ids=lambda p: p.parent.name)
def test_templates_of_secrets_are_valid_and_named_as_they_are_mounted(path: Path) -> None:
    secrets = list(yaml.safe_load_all(path.read_text()))
    names = {secret["metadata"]["name"]: set(secret["stringData"]) for secret in secrets}
    mounted = {
        volume["secret"]["secretName"]
        for workload in workloads("production")
        for volume in pod_of(workload)["volumes"]
        if "secret" in volume
    }
    assert names.keys() <= mounted
    for secret in secrets:
        validate(secret, NEWEST)


def test_every_mounted_secret_has_a_template() -> None:
    templates = [
        secret["metadata"]["name"]
        for path in FOLDER.glob("components/*/secrets.example.yaml")
        for secret in yaml.safe_load_all(path.read_text())
    ]
    mounted = [
        volume["secret"]["secretName"]
        for workload in workloads("production")
        for volume in pod_of(workload)["volumes"]
        if "secret" in volume
    ]
    assert sorted(templates) == sorted(mounted)


@each_overlay
def test_settings_exist_and_go_together(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = settings_of(overlay, find(overlay, "StatefulSet", "specedge-verifier"), monkeypatch)
    edge = settings_of(overlay, find(overlay, "DaemonSet", "specedge-edge"), monkeypatch)
    assert isinstance(verifier, VerifierSettings) and isinstance(edge, EdgeSettings)
    assert verifier.host == edge.host == verifier.metrics_host == edge.metrics_host == "0.0.0.0"
    assert verifier.target_model == edge.target_model
    assert (verifier.tls_certificate_file is None) == (edge.verifier_ca_file is None) == verifier.allow_plaintext
    assert (verifier.tenants_file is None) == (edge.verifier_token_file is None)
    name, _, port = edge.verifier_address.rpartition(":")
    ports = {entry["port"] for entry in find(overlay, "Service", name.removeprefix("dns:"))["spec"]["ports"]}
    assert int(port) in ports and int(port) == verifier.port


@each_overlay
def test_files_in_settings_are_mounted(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for workload in workloads(overlay):
        settings = settings_of(overlay, workload, monkeypatch)
        if settings is None:
            continue
        files = [value for value in settings.model_dump().values() if isinstance(value, Path)]
        mounts = [Path(mount["mountPath"]) for mount in container_of(workload)["volumeMounts"]]
        assert [file for file in files if not any(file.is_relative_to(mount) for mount in mounts)] == []
        assert {Path("/models"), Path("/cache"), Path("/tmp")} <= set(mounts), "all that an image writes to"


@each_overlay
def test_pods_are_locked_down(overlay: str) -> None:
    for workload in workloads(overlay):
        pod, container = pod_of(workload), container_of(workload)
        assert pod["automountServiceAccountToken"] is False
        assert pod["serviceAccountName"] == workload["metadata"]["name"]
        assert find(overlay, "ServiceAccount", pod["serviceAccountName"])["automountServiceAccountToken"] is False
        security = pod["securityContext"]
        assert (security["runAsUser"], security["runAsGroup"], security["runAsNonRoot"]) == (10001, 10001, True)
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"]
        policies = [resource for resource in rendered(overlay) if resource["kind"] == "NetworkPolicy"]
        labels = workload["spec"]["template"]["metadata"]["labels"]
        selected = [policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items() for policy in policies]
        assert sum(selected) >= 2, "the one that forbids everything, and its own"


@each_overlay
def test_services_set_no_variables_that_look_like_settings(overlay: str) -> None:
    assert [pod_of(workload)["enableServiceLinks"] for workload in workloads(overlay)] == [False] * len(
        workloads(overlay)
    )


@each_overlay
def test_a_drain_has_its_time(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drains = []
    for workload in workloads(overlay):
        settings = settings_of(overlay, workload, monkeypatch)
        if settings is None:
            continue
        pause_s = container_of(workload)["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod_of(workload)["terminationGracePeriodSeconds"] > pause_s + settings.drain_timeout_s + END_S
        drains.append(settings.drain_timeout_s)
    for workload in workloads(overlay):
        if workload["metadata"]["name"] == "specedge-envoy":
            command = container_of(workload)["lifecycle"]["preStop"]["exec"]["command"][-1]
            wait_s = float(shlex.split(command)[-1])
            assert pod_of(workload)["terminationGracePeriodSeconds"] > wait_s >= max(drains)


@each_overlay
def test_images_and_ports_are_those_of_the_dockerfiles(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for workload in workloads(overlay):
        settings = settings_of(overlay, workload, monkeypatch)
        if settings is None:
            continue
        name, container = workload["metadata"]["name"], container_of(workload)
        text = (ROOT / DOCKERFILES[name]).read_text()
        assert f"-t {container['image']} " in text
        assert "args" not in container and "command" not in container, "the image knows what it runs"
        exposed = {int(port) for line in re.findall(r"^EXPOSE (.*)$", text, re.MULTILINE) for port in line.split()}
        ports = {entry["name"]: entry["containerPort"] for entry in container["ports"]}
        assert set(ports.values()) == exposed == {settings.port, settings.metrics_port}
        assert ports["metrics"] == settings.metrics_port
        served = {entry["targetPort"]: entry["port"] for entry in find(overlay, "Service", name)["spec"]["ports"]}
        assert served == ports


@each_overlay
def test_probes_ask_what_is_there(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = find(overlay, "StatefulSet", "specedge-verifier")
    settings = settings_of(overlay, verifier, monkeypatch)
    assert isinstance(settings, VerifierSettings)
    for kind, workload in product(("startupProbe", "readinessProbe", "livenessProbe"), workloads(overlay)):
        probe = container_of(workload).get(kind)
        if workload is not verifier or probe is None:
            continue
        if settings.tls_certificate_file is None:
            assert probe["grpc"] == {"port": settings.port}
            continue
        program, *arguments = probe["exec"]["command"]
        assert program == "specedge" and f"127.0.0.1:{settings.port}" in arguments
        assert f"--ca-file={settings.tls_client_ca_file}" in arguments
        assert f"--certificate-file={settings.tls_certificate_file}" in arguments
        assert f"--key-file={settings.tls_key_file}" in arguments
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--help"])
        assert ended.value.code == 0
    routes = (ROOT / "edge_agent" / "http" / "status_routes.py").read_text()
    edge = container_of(find(overlay, "DaemonSet", "specedge-edge"))
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert f'router.get("{edge[kind]["httpGet"]["path"]}"' in routes


def test_rules_are_those_of_prometheus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    build = runpy.run_path(str(FOLDER / "components" / "monitoring" / "build.py"))
    monkeypatch.setattr(sys, "argv", ["build.py", "--check"])
    assert build["main"]() == 0, capsys.readouterr().err
    source = {
        path.name.partition(".")[0]: yaml.safe_load(path.read_text())
        for path in (ROOT / "deploy" / "prometheus" / "rules").glob("*.rules.yml")
    }
    shown = {
        resource["metadata"]["name"].removeprefix("specedge-"): resource["spec"]
        for resource in rendered("monitoring")
        if resource["kind"] == "PrometheusRule"
    }
    assert shown == source


def test_scraping_finds_the_ports_and_makes_the_jobs_that_rules_ask_for() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    monitors = [resource for resource in rendered("production") if resource["kind"] == "ServiceMonitor"]
    services = [resource for resource in rendered("production") if resource["kind"] == "Service"]
    found = set()
    for monitor in monitors:
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        (service,) = [service for service in services if wanted <= service["metadata"]["labels"].items()]
        names = {port["name"] for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= names
        found.add(service["metadata"]["name"])
    assert jobs <= found


def test_every_dashboard_is_delivered() -> None:
    folder = ROOT / "deploy" / "grafana" / "dashboards"
    maps = [resource for resource in rendered("monitoring") if resource["kind"] == "ConfigMap"]
    shown = {
        name: text
        for resource in maps
        if resource["metadata"].get("labels", {}).get("grafana_dashboard")
        for name, text in resource["data"].items()
    }
    assert shown == {path.name: path.read_text() for path in folder.glob("*.json")}


def test_autoscaling_asks_for_metrics_that_a_verifier_has() -> None:
    registry = runpy.run_path(str(ROOT / "docs" / "metrics_table.py"))["verifier_registry"]()
    gauges = {family.name for family in registry.collect() if family.type == "gauge"}
    scaled = find("monitoring", "ScaledObject", "specedge-verifier")["spec"]
    queries = [trigger["metadata"]["query"] for trigger in scaled["triggers"]]
    assert {re.findall(r"specedge_\w+", query)[0] for query in queries} == {
        "specedge_verifier_sessions_waiting",
        "specedge_verifier_kv_usage_ratio",
    }
    assert {name for query in queries for name in re.findall(r"specedge_\w+", query)} <= gauges
    target = find("monitoring", scaled["scaleTargetRef"]["kind"], scaled["scaleTargetRef"]["name"])
    assert "replicas" not in target["spec"], "applying again must not undo what was scaled"


def test_an_endpoint_picker_finds_the_metrics_it_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    table = runpy.run_path(str(ROOT / "docs" / "metrics_table.py"))
    queues = ["vllm:num_requests_waiting", "vllm:num_requests_running"]
    for process, expected in (("verifier", [*queues, "vllm:kv_cache_usage_perc"]), ("edge", queues)):
        types = {family.name: family.type for family in table[f"{process}_registry"]().collect()}
        assert [types.get(name) for name in expected] == ["gauge"] * len(expected)
    pool = find("inference-pool", "InferencePool", "specedge-edge")["spec"]
    edge = find("inference-pool", "DaemonSet", "specedge-edge")
    settings = settings_of("inference-pool", edge, monkeypatch)
    assert settings is not None
    assert pool["selector"]["matchLabels"].items() <= edge["spec"]["template"]["metadata"]["labels"].items()
    assert pool["targetPorts"] == [{"number": settings.port}]
    assert f"model-server-metrics-port={settings.metrics_port}" in (ROOT / "docs" / "kubernetes.md").read_text()
