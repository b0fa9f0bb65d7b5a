"""The app, whose `/openapi.json` also says how requests show their keys."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

from edge_agent.http.access import OPEN_PATHS
from edge_agent.http.api_docs import DESCRIPTION, TITLE
from specedge import __version__

_KEYS: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key, as OpenAI's clients send it"},
    "x-api-key": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "an API key, as Anthropic's clients send it",
    },
}

# FastAPI begins each request's span, within the client's trace. Its log records would hold what clients sent.
_TELEMETRY: Final[TelemetryConfig] = {
    "operation_spans": False,
    "logs": False,
    "exclude": lambda scope: scope.get("path") in {"/health", "/ready", "/metrics"},
}


class DocumentedApp(FastAPI):
    """A FastAPI app.

    Args:
        needs_key: the paths that are not open to everybody want an API key; else a key is accepted and not looked at.
    """

    def __init__(self, *, needs_key: bool) -> None:
        super().__init__(title=TITLE, description=DESCRIPTION, version=__version__, telemetry=_TELEMETRY)
        ways: list[dict[str, list[str]]] = [{name: []} for name in _KEYS]
        self._security = ways if needs_key else [*ways, {}]

    def openapi(self) -> dict[str, Any]:
        """The document."""
        if self.openapi_schema is None:
            document = super().openapi()
            document["components"]["securitySchemes"] = _KEYS
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    operation["security"] = [] if path in OPEN_PATHS else self._security
        return super().openapi()
