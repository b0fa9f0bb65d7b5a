"""The trace of one answer: a span from its first stream to its last token, with OpenTelemetry's names for such work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry import trace

from specedge.sampling import SamplingParams
from specedge.tracing import tracer


@dataclass(frozen=True, slots=True)
class SessionOutcome:
    """What became of an answer.

    Attributes:
        num_tokens: of the answer.
        finish_reason: empty for an answer that broke off or was cut on the edge.
        num_streams: streams it took; more than one after reconnections.
    """

    num_tokens: int
    finish_reason: str
    num_streams: int


@contextmanager
def session_span(
    session_id: str, model: str, num_prompt: int, sampling: SamplingParams, outcome: Callable[[], SessionOutcome]
) -> Iterator[trace.Span]:
    """The current span of everything inside; an error inside marks it as failed."""
    attributes: dict[str, str | int | float] = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "specedge",
        "gen_ai.request.model": model,
        "gen_ai.response.id": session_id,
        "gen_ai.usage.input_tokens": num_prompt,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
    }
    name = f"text_completion {model}"
    with tracer.start_as_current_span(name, kind=trace.SpanKind.CLIENT, attributes=attributes) as span:
        try:
            yield span
        finally:
            became = outcome()
            span.set_attribute("gen_ai.usage.output_tokens", became.num_tokens)
            span.set_attribute("specedge.session.streams", became.num_streams)
            if became.finish_reason:
                span.set_attribute("gen_ai.response.finish_reasons", [became.finish_reason])
