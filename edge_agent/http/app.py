"""Puts the HTTP API together."""

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from edge_agent.detokenizer import DetokenizerFactory
from edge_agent.draft_only import DraftOnly
from edge_agent.http.anthropic_request import MessagesRequest
from edge_agent.http.api_docs import generation_docs
from edge_agent.http.choices import ChoiceRunner
from edge_agent.http.documented_app import DocumentedApp
from edge_agent.http.endpoints import GenerationEndpoints
from edge_agent.http.errors import ANTHROPIC_PATH, BodyRefused, ClientDisconnected, answer_error
from edge_agent.http.idempotency import Claims
from edge_agent.http.middleware import surround
from edge_agent.http.playground_routes import playground_router
from edge_agent.http.ports import ChatTokenizer, GenerationPort
from edge_agent.http.prompts import PromptEncoder
from edge_agent.http.responses_request import ResponsesRequest
from edge_agent.http.schema import ChatRequest, CompletionRequest
from edge_agent.http.served_model import ServedModel
from edge_agent.http.settings import HttpSettings
from edge_agent.http.status_routes import NotReadyReason, status_router
from edge_agent.http.token_routes import token_router
from edge_agent.http.unread import Refusal
from edge_agent.journal.journal import Journal
from edge_agent.metrics import EdgeMetrics
from specedge.errors import SpecEdgeError


def create_app(
    service: GenerationPort,
    tokenizer: ChatTokenizer,
    settings: HttpSettings,
    metrics: EdgeMetrics,
    not_ready_reason: NotReadyReason = lambda: None,
    journal: Journal | None = None,
    draft_only: DraftOnly | None = None,
    refusal: Refusal = lambda: None,
) -> FastAPI:
    """The OpenAI-compatible API over a generation service.

    Args:
        service: generates token ids.
        tokenizer: the target's, with its chat template.
        settings: limits and defaults.
        metrics: written to, and shown at `/metrics`.
        not_ready_reason: why `/ready` has to say no whatever the verifier says; None when nothing speaks against it.
        journal: where answers that have a name are recorded; None: they are not.
        draft_only: answers while no verifier can be reached; None: nobody does.
        refusal: with which requests are refused unread at this moment.
    """
    app = DocumentedApp(needs_key=settings.api_keys_file is not None)
    model = ServedModel(service, settings.model_name, draft_only)
    detokenizers = DetokenizerFactory(tokenizer)
    runner = ChoiceRunner(service, detokenizers, metrics, settings.max_parallel_choices)
    encoder = PromptEncoder(tokenizer, settings)
    endpoints = GenerationEndpoints(encoder, runner, detokenizers, settings, Claims(model, journal))
    for path, handler, body in (
        ("/v1/chat/completions", endpoints.chat, ChatRequest),
        ("/v1/completions", endpoints.complete, CompletionRequest),
        (ANTHROPIC_PATH, endpoints.messages, MessagesRequest),
        ("/v1/responses", endpoints.responses, ResponsesRequest),
    ):
        app.add_api_route(path, handler, methods=["POST"], response_model=None, **generation_docs(body, path))
    app.include_router(token_router(model, encoder, settings))
    app.include_router(playground_router())
    app.include_router(status_router(model, metrics, settings, not_ready_reason))
    for error in (SpecEdgeError, BodyRefused, ClientDisconnected, HTTPException, RequestValidationError):
        app.add_exception_handler(error, answer_error)
    surround(app, settings, metrics, refusal)
    return app
