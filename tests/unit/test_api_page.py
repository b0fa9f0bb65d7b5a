"""`docs/api.md` says what the code does, and every field of every endpoint is described."""

import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from http_support import FakeService, tokenizer

from edge_agent.http.access import OPEN_PATHS
from edge_agent.http.anthropic_request import COUNT_PATH
from edge_agent.http.app import create_app
from edge_agent.http.middleware import GENERATION_PATHS
from edge_agent.http.settings import HttpSettings
from edge_agent.metrics import EdgeMetrics

SCRIPT = Path(__file__).parents[2] / "docs" / "api_table.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("api_table", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


api_table = _load()


@cache
def document(**settings: Any) -> dict[str, Any]:
    settings = {"model_name": "demo", "public_metrics": True, **settings}
    app = create_app(FakeService(), tokenizer(), HttpSettings(**settings), EdgeMetrics(lambda: "demo"))
    return app.openapi()


def test_the_page_is_what_the_code_does() -> None:
    text = api_table.PAGE.read_text()
    assert api_table.page(text) == text, "run: python docs/api_table.py"


def test_every_reason_is_of_a_field_that_needs_one() -> None:
    needing = {name for table in api_table.tables().values() for name, state, _ in table if state != "supported"}
    assert set(api_table.REASONS) <= needing


def is_described(field: dict[str, Any]) -> bool:
    """A constant says what it is, and what refers to an object that has a description needs no other."""
    inner = [*field.get("anyOf", []), *([field["items"]] if "items" in field else [])]
    return bool(field.keys() & {"description", "const", "$ref"}) or any(is_described(each) for each in inner)


def undescribed(schema: Any, where: str = "") -> Iterator[str]:
    """The places of the fields of all objects in it that nothing is said of."""
    if isinstance(schema, list):
        for index, inner in enumerate(schema):
            yield from undescribed(inner, f"{where}/{index}")
    if not isinstance(schema, dict):
        return
    properties = schema.get("properties")
    for name, field in properties.items() if isinstance(properties, dict) else ():
        if isinstance(field, dict) and not is_described(field):
            yield f"{where}.{name}"
    for name, inner in schema.items():
        yield from undescribed(inner, f"{where}/{name}")


def test_every_field_of_every_body_and_answer_is_described() -> None:
    whole = document()
    assert list(undescribed(whole["paths"])) == []
    assert list(undescribed(whole["components"])) == []
    assert list(undescribed({"properties": {"a": {"type": "string"}}})) == [".a"]


@pytest.mark.parametrize("endpoint", api_table.tables())
def test_the_first_level_of_every_body_is_described_by_itself(endpoint: str) -> None:
    method, path = endpoint.split()
    schema = document()["paths"][path][method.lower()]["requestBody"]["content"]["application/json"]["schema"]
    assert [name for name, field in schema["properties"].items() if not field.get("description")] == []


@pytest.mark.parametrize("has_keys", [True, False])
def test_the_ways_to_send_a_key_are_told(has_keys: bool, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("[]")
    whole = document(api_keys_file=keys if has_keys else None)
    schemes = whole["components"]["securitySchemes"]
    assert schemes["bearer"]["scheme"] == "bearer"
    assert (schemes["x-api-key"]["in"], schemes["x-api-key"]["name"]) == ("header", "x-api-key")
    ways = [{"bearer": []}, {"x-api-key": []}]
    for path, operations in whole["paths"].items():
        for method, operation in operations.items():
            is_open = path in OPEN_PATHS
            assert operation["security"] == ([] if is_open else ways if has_keys else [*ways, {}])
            assert ("401" in operation["responses"]) == (not is_open)
            assert ("429" in operation["responses"]) == (not is_open and method == "post")


@pytest.mark.parametrize("endpoint", api_table.tables())
def test_every_status_has_a_body(endpoint: str) -> None:
    method, path = endpoint.split()
    answers = document()["paths"][path][method.lower()]["responses"]
    assert set(answers) >= {"200", "400", "401", "404", "408", "413", "415", "429", "503"}
    # Never FastAPI's own, which has another body.
    assert ("422" in answers) == ("409" in answers) == (path in GENERATION_PATHS)
    shape = "AnthropicErrorAnswer" if path.startswith("/v1/messages") else "ErrorAnswer"
    for status, answer in answers.items():
        content = answer["content"]["application/json"]["schema"]
        assert content["$ref"].startswith("#/components/schemas/")
        assert (content["$ref"].rpartition("/")[2] == shape) == (status != "200")
        assert "x-specedge-version" in answer["headers"]
    assert ("retry-after" in answers["429"]["headers"]) and ("retry-after" in answers["503"]["headers"])
    assert ("text/event-stream" in answers["200"]["content"]) == (path.startswith("/v1/") and path != COUNT_PATH)


def test_routes_about_the_service_are_described_too() -> None:
    for path in ("/health", "/ready", "/version", "/v1/models", "/v1/models/{name}"):
        answer = document()["paths"][path]["get"]["responses"]["200"]
        assert answer["content"]["application/json"]["schema"]["$ref"]
    assert set(document()["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) >= {"text/plain"}
    assert document()["paths"]["/v1/models/{name}"]["get"]["parameters"][0]["description"]
