"""The API against its own `/openapi.json`: what it documents it takes and answers as documented, and nothing breaks it.

By default a few cases for each route; `make test-api` tries thousands, and the real pair too.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from http_support import FakeService, serving_in_thread
from hypothesis import HealthCheck, given, settings
from processes import Edge, Verifier, running

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis: make install-dev")

ROUTES = (
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/messages",
    "POST /v1/messages/count_tokens",
    "POST /v1/responses",
    "POST /tokenize",
    "POST /detokenize",
    "GET /v1/models",
    "GET /v1/models/{name}",
    "GET /health",
    "GET /ready",
    "GET /version",
    "GET /metrics",
)
WITH_BODY = tuple(route for route in ROUTES if route.startswith("POST"))
DEFAULT_CASES = 12
MODES = {"good": schemathesis.GenerationMode.POSITIVE, "bad": schemathesis.GenerationMode.NEGATIVE}
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)


class Api:
    """A running API and what its documentation makes of it."""

    def __init__(self, url: str) -> None:
        self.url = url
        document = httpx.get(f"{url}/openapi.json", trust_env=False).raise_for_status().json()
        self.operations = {
            operation.label: operation
            for result in schemathesis.openapi.from_dict(document).get_all_operations()
            for operation in [result.ok()]
        }


@pytest.fixture(scope="module", params=["fake", "real"])
def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    if request.param == "fake":
        with serving_in_thread(FakeService("Once upon a time 🙂.")) as api:
            yield Api(api.url)
        return
    if request.config.getoption("--api-cases") is None:
        pytest.skip("needs --api-cases: make test-api")
    folder = tmp_path_factory.mktemp("logs")
    verifier = Verifier(folder, "--num-kv-blocks", "512")
    edge = Edge(folder, "edge", verifier, "--max-new-tokens", "8")
    with running(verifier, edge):
        yield Api(edge.url)
    for service in (verifier, edge):
        assert "Traceback" not in service.log(), service.log()


def test_the_routes_are_all_of_them(api: Api) -> None:
    assert sorted(api.operations) == sorted(ROUTES)


def try_cases(api: Api, route: str, mode: str, num_cases: int) -> Counter[int]:
    """Sends cases; returns how often each status came."""
    operation = api.operations[route]
    names = (*CHECKS, "negative_data_rejection") if mode == "bad" else CHECKS
    checks = schemathesis.checks.CHECKS.get_by_names(names)
    statuses: Counter[int] = Counter()

    @settings(max_examples=num_cases, suppress_health_check=list(HealthCheck), deadline=None)
    @given(operation.as_strategy(MODES[mode]))
    def send(case: Any) -> None:
        if mode == "good" and isinstance(case.body, dict):
            _let_through(case.body)
            if 200 not in statuses and statuses.total() >= num_cases // 2:
                _leave_out(case.body)
        response = case.call(base_url=api.url)
        statuses[response.status_code] += 1
        case.validate_response(response, checks=checks)

    send()
    return statuses


def _leave_out(body: dict[str, Any]) -> None:
    """All but what a request needs: of many random fields at once one is nearly always beyond a limit."""
    for name in body.keys() - {"prompt", "messages", "input", "max_tokens", "tokens"}:
        del body[name]


def _let_through(body: dict[str, Any]) -> None:
    """What random values seldom get right, so that answers are fuzzed too: the model's name, and few tokens."""
    body.pop("model", None)
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if isinstance(body.get(name), int):
            body[name] = 1 + body[name] % 6
    if isinstance(body.get("min_tokens"), int):
        body["min_tokens"] %= 2


@pytest.mark.parametrize("route", ROUTES)
def test_documented_requests_get_documented_answers(api: Api, route: str, num_cases: int) -> None:
    statuses = try_cases(api, route, "good", num_cases)
    assert 200 in statuses or route == "GET /v1/models/{name}", statuses


@pytest.mark.parametrize("route", WITH_BODY)
def test_undocumented_requests_are_refused(api: Api, route: str, num_cases: int) -> None:
    statuses = try_cases(api, route, "bad", num_cases)
    assert set(statuses) <= {400, 404, 415}


@pytest.fixture
def num_cases(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--api-cases") or DEFAULT_CASES
