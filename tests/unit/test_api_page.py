"""`docs/api.md` says what the code does, and every field of every endpoint is described."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from http_support import FakeService, tokenizer

from edge_agent.http.app import create_app
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


def document() -> dict[str, Any]:
    app = create_app(
        FakeService(), tokenizer(), HttpSettings(model_name="demo", public_metrics=True), EdgeMetrics(lambda: "demo")
    )
    return app.openapi()


def test_the_page_is_what_the_code_does() -> None:
    text = api_table.PAGE.read_text()
    assert api_table.page(text) == text, "run: python docs/api_table.py"


def test_every_reason_is_of_a_field_that_needs_one() -> None:
    needing = {name for table in api_table.tables().values() for name, state, _ in table if state != "supported"}
    assert set(api_table.REASONS) <= needing


@pytest.mark.parametrize("endpoint", api_table.tables())
def test_every_field_of_every_body_is_described(endpoint: str) -> None:
    method, path = endpoint.split()
    operation = document()["paths"][path][method.lower()]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    undescribed = [name for name, field in schema["properties"].items() if not field.get("description")]
    assert undescribed == []
    for name in ("stream_options", "speculation"):
        part = schema["properties"].get(name, {}).get("anyOf", [{}])[0]
        assert all(field.get("description") for field in part.get("properties", {}).values())


@pytest.mark.parametrize("endpoint", api_table.tables())
def test_every_status_has_a_body(endpoint: str) -> None:
    method, path = endpoint.split()
    answers = document()["paths"][path][method.lower()]["responses"]
    assert set(answers) >= {"200", "400", "401", "404", "408", "413", "415", "429", "503"}
    assert "422" not in answers
    shape = "AnthropicErrorAnswer" if path == "/v1/messages" else "ErrorAnswer"
    for status, answer in answers.items():
        content = answer["content"]["application/json"]["schema"]
        assert content["$ref"].startswith("#/components/schemas/")
        assert (content["$ref"].rpartition("/")[2] == shape) == (status != "200")
        assert "x-specedge-version" in answer["headers"]
    assert ("retry-after" in answers["429"]["headers"]) and ("retry-after" in answers["503"]["headers"])
    assert ("text/event-stream" in answers["200"]["content"]) == path.startswith("/v1/")


def test_routes_about_the_service_are_described_too() -> None:
    for path in ("/health", "/ready", "/version", "/v1/models", "/v1/models/{name}"):
        answer = document()["paths"][path]["get"]["responses"]["200"]
        assert answer["content"]["application/json"]["schema"]["$ref"]
    assert set(document()["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) >= {"text/plain"}
    assert document()["paths"]["/v1/models/{name}"]["get"]["parameters"][0]["description"]
