"""Routes about the service itself: models, liveness, readiness, version, metrics."""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request

from edge_agent.http.answer_schema import HealthAnswer, ModelEntry, ModelList, ReadyAnswer, VersionAnswer
from edge_agent.http.api_docs import answer_docs
from edge_agent.http.served_model import ServedModel
from edge_agent.http.settings import HttpSettings
from edge_agent.metrics import EdgeMetrics
from specedge import __version__

_MODELS: Final[dict[str, Any]] = {"tags": ["models"], "response_model": None}
_STATUS: Final[dict[str, Any]] = {"tags": ["status"], "response_model": None}
_NAME: Final = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "what `/v1/models` calls it",
    "schema": {"type": "string"},
}
_PROMETHEUS: Final = {"schema": {"type": "string"}}
_NOT_READY: Final = {"model": ReadyAnswer, "description": "Requests cannot be served yet"}

NotReadyReason = Callable[[], str | None]


def status_router(
    model: ServedModel, metrics: EdgeMetrics, settings: HttpSettings, not_ready_reason: NotReadyReason
) -> APIRouter:
    """The routes.

    Args:
        model: the served model.
        metrics: what `/metrics` shows.
        settings: with what `/version` says of the draft model, and whether `/metrics` is here.
        not_ready_reason: why requests cannot be served yet for reasons of this process, None when they can.
    """
    router = APIRouter()
    started_at = int(time.time())

    def describe_model(name: str) -> dict[str, Any]:
        entry = {"id": name, "object": "model", "created": started_at, "owned_by": "specedge"}
        info = model.info
        return entry if info is None else entry | {"root": info.target_model, "max_model_len": info.max_len}

    @router.get("/v1/models", responses=answer_docs(ModelList, (401,)), **_MODELS)
    async def models() -> dict[str, Any]:
        """The models served here; none before the verifier has named its own."""
        name = model.name
        return {"object": "list", "data": [] if name is None else [describe_model(name)]}

    @router.get(
        "/v1/models/{name:path}",
        responses=answer_docs(ModelEntry, (401, 404, 503)),
        openapi_extra={"parameters": [_NAME]},
        **_MODELS,
    )
    async def one_model(request: Request) -> dict[str, Any]:
        """One model; with nothing after the slash, all of them."""
        if not request.path_params["name"]:
            return await models()
        return describe_model(model.require_name(request.path_params["name"]))

    @router.get("/health", responses=answer_docs(HealthAnswer), **_STATUS)
    async def health() -> dict[str, str]:
        """The process lives and answers."""
        return {"status": "ok"}

    @router.get("/ready", responses=answer_docs(ReadyAnswer) | {503: _NOT_READY}, **_STATUS)
    async def ready() -> Response:
        """Requests sent now will be served."""
        reason = not_ready_reason()
        if reason is None and not model.is_ready and not model.is_degraded:
            reason = model.failure
        beside: dict[str, Any] = {"verifiers": verifiers} if (verifiers := model.verifiers) else {}
        if model.is_degraded:
            beside["degraded"] = "draft-only"
        if reason is None:
            return JSONResponse({"status": "ready"} | beside)
        return JSONResponse({"status": "not ready", "reason": reason} | beside, 503, {"retry-after": "1"})

    @router.get("/version", responses=answer_docs(VersionAnswer), **_STATUS)
    async def version() -> dict[str, Any]:
        """Versions of this edge agent and of its verifier, null until it has answered; and what computes drafts."""
        info, execution = model.info, settings.draft_execution
        return {
            "version": __version__,
            "verifier_version": None if info is None else info.server_version,
            "protocol_version": None if info is None else info.protocol_version,
            "target_model": None if info is None else info.target_model,
            "draft_model": settings.draft_model,
            "draft_execution": None if execution is None else asdict(execution),
        }

    async def show_metrics(request: Request) -> Response:
        """Prometheus metrics; here with `public_metrics` only, else at a port of their own."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(metrics.registry), media_type=None, headers={"content-type": content_type})

    if settings.public_metrics:
        docs = _metrics_docs()
        router.get("/metrics", responses=docs, response_class=PlainTextResponse, **_STATUS)(show_metrics)
    return router


def _metrics_docs() -> dict[int | str, dict[str, Any]]:
    answers = answer_docs(None)
    answers[200]["content"] = {"text/plain": _PROMETHEUS, "application/openmetrics-text": _PROMETHEUS}
    return answers
