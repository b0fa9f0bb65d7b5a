"""OpenTelemetry traces: spans of both processes, sent to a collector where a setting names one.

Without it the API's own no-op spans are used, and nothing is recorded. The SDK is the extra `tracing`; its environment
variables (`OTEL_TRACES_SAMPLER`, `OTEL_RESOURCE_ATTRIBUTES`, ...) hold as everywhere.
"""

import atexit

from opentelemetry import trace

from specedge import __version__
from specedge.errors import SettingsError

tracer = trace.get_tracer("specedge", __version__)
"""Makes every span of this project."""


def start_tracing(endpoint: str, service_name: str) -> None:
    """Send this process's spans to `endpoint` (OTLP over HTTP), in the background; what is left goes at exit.

    Raises:
        SettingsError: the packages for it are not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        message = f"traces_endpoint is {endpoint}, and {error.name} is not installed: pip install 'specedge[tracing]'"
        raise SettingsError(message) from error
    resource = Resource.create({"service.name": service_name, "service.version": __version__})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=5)))
    trace.set_tracer_provider(provider)
    atexit.register(provider.shutdown)
