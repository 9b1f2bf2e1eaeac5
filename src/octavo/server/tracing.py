"""OpenTelemetry traces (``--otlp-traces-endpoint``): one span for each prompt that is computed, with the attributes that vLLM's have.

The libraries are an extra (``octavo[otel]``) and are imported only where the flag is given. No span holds text.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

import octavo
from octavo import env
from octavo.engine.messages import RequestTimes
from octavo.errors import ConfigError
from octavo.sampling_params import SamplingParams

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

LAST_EXPORT_SECONDS = 5.0
"""How long the collector gets to take the last spans when the server ends."""
GRPC, HTTP = "grpc", "http/protobuf"


class Tracing:
    """Makes spans and exports them in the background; a collector that does not answer costs spans, never requests.

    Args:
        exporter: where spans go.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create()
        if str(resource.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):  # $OTEL_SERVICE_NAME wins
            resource = resource.merge(Resource({SERVICE_NAME: "octavo"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("octavo", octavo.__version__)

    def begin(self, request_id: str, model: str, params: SamplingParams, prompt_tokens: int, arrival: float) -> RequestSpan:
        """Begin a span, under the trace of the HTTP request that is being answered where that brought one.

        Args:
            request_id: as the answer shows it.
            model: the served name.
            arrival: when it was submitted, on ``time.monotonic``'s clock.
        """
        from opentelemetry.trace import SpanKind

        attributes: dict[str, Any] = {
            "gen_ai.request.id": request_id,
            "gen_ai.response.model": model,
            "gen_ai.request.n": params.n,
            "gen_ai.request.temperature": params.temperature,
            "gen_ai.request.top_p": params.top_p,
            "gen_ai.usage.prompt_tokens": prompt_tokens,
        }
        if params.max_tokens is not None:
            attributes["gen_ai.request.max_tokens"] = params.max_tokens
        start = time.time_ns() - int((time.monotonic() - arrival) * 1e9)
        span = self._tracer.start_span("llm_request", kind=SpanKind.SERVER, attributes=attributes, start_time=start)
        return RequestSpan(span, arrival)

    def flush(self) -> None:
        """Export what has ended; returns when the exporter has taken it."""
        self._provider.force_flush()

    def shutdown(self, timeout: float = LAST_EXPORT_SECONDS) -> None:
        """Export what is left; blocks for at most ``timeout`` seconds, after which the rest is lost."""
        # A thread of its own: the exporter may go on retrying, and must not keep the process alive.
        last = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        last.start()
        last.join(timeout)


class RequestSpan:
    """The span of one prompt under way."""

    def __init__(self, span: Span, arrival: float) -> None:
        self._span = span
        self._arrival = arrival

    def end(self, reason: str, completion_tokens: int, times: RequestTimes | None) -> None:
        """Finish it.

        Args:
            reason: stop, length, abort or error.
            completion_tokens: generated, over all sequences.
            times: the engine's, where it lived to tell.
        """
        span = self._span
        span.set_attribute("gen_ai.usage.completion_tokens", completion_tokens)
        span.set_attribute("gen_ai.response.finish_reasons", [reason])
        span.set_attribute("gen_ai.latency.e2e", time.monotonic() - self._arrival)
        if times is not None and times.first_scheduled and times.first_token:
            span.set_attribute("gen_ai.latency.time_in_queue", times.first_scheduled - times.arrival)
            span.set_attribute("gen_ai.latency.time_to_first_token", times.first_token - self._arrival)
            span.set_attribute("gen_ai.latency.time_in_model_prefill", times.first_token - times.first_scheduled)
            span.set_attribute("gen_ai.latency.time_in_model_decode", max(0.0, times.finished - times.first_token))
            span.set_attribute("gen_ai.latency.time_in_model_inference", max(0.0, times.finished - times.first_scheduled))
        if reason == "error":
            from opentelemetry.trace import StatusCode

            span.set_status(StatusCode.ERROR)
        span.end()


class TraceContexts:
    """ASGI middleware that makes a request's ``traceparent`` and ``tracestate`` the trace its spans belong to."""

    def __init__(self, app: ASGIApp) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._app = app
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from opentelemetry import context

        carrier = {
            name.decode(): value.decode("latin-1") for name, value in scope.get("headers", ()) if name in (b"traceparent", b"tracestate")
        }
        if "traceparent" not in carrier:
            await self._app(scope, receive, send)
            return
        token = context.attach(self._propagator.extract(carrier))
        try:
            await self._app(scope, receive, send)
        finally:
            context.detach(token)


def start(endpoint: str) -> Tracing:
    """Make the tracing that sends to a collector.

    Args:
        endpoint: its URL: http, https, grpc or grpcs.

    Raises:
        ConfigError: the libraries are not installed, or do not know the protocol.
    """
    protocol = protocol_of(endpoint)
    exporter: SpanExporter
    try:
        if protocol == GRPC:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

            # TLS only where the URL asks for it.
            plain = urlsplit(endpoint).scheme in ("http", "grpc")
            exporter = GrpcExporter(endpoint=urlsplit(endpoint).netloc, insecure=plain)
        else:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

            has_path = urlsplit(endpoint).path not in ("", "/")
            exporter = HttpExporter(endpoint=endpoint if has_path else endpoint.rstrip("/") + "/v1/traces")
        return Tracing(exporter)
    except ImportError as error:
        raise ConfigError(f"otlp_traces_endpoint needs OpenTelemetry ({error}); install it with: pip install 'octavo[otel]'") from None


def protocol_of(endpoint: str) -> str:
    """How to speak to a collector: what ``$OTEL_EXPORTER_OTLP_TRACES_PROTOCOL`` says, else what the URL suggests.

    Raises:
        ConfigError: neither gRPC nor HTTP with protobuf.
    """
    asked = env.otlp_protocol()
    if asked not in ("", GRPC, HTTP):
        raise ConfigError(f"$OTEL_EXPORTER_OTLP_TRACES_PROTOCOL must be {GRPC} or {HTTP}; got {asked!r}.")
    url = urlsplit(endpoint)
    if url.scheme in ("grpc", "grpcs"):
        return GRPC
    return asked or (HTTP if url.path not in ("", "/") or url.port == 4318 else GRPC)
