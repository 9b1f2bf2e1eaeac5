"""Spans: their attributes, the trace they belong to, what they leave out, and how they reach a collector."""

from __future__ import annotations

import asyncio
import gzip
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from octavo.cli.flags import parse_serve
from octavo.config import ServerOptions
from octavo.errors import ConfigError, EngineDeadError
from octavo.server import tracing
from octavo.server.app import build_app

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
LATENCIES = ("e2e", "time_in_queue", "time_to_first_token", "time_in_model_prefill", "time_in_model_decode", "time_in_model_inference")


class Spans:
    """What an in-memory exporter got."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracing = tracing.Tracing(self.exporter)

    def all(self) -> list[ReadableSpan]:
        self.tracing.flush()
        return list(self.exporter.get_finished_spans())


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    made = Spans()
    monkeypatch.setattr(tracing, "start", lambda endpoint: made.tracing)
    return made


@pytest.fixture
def traced(spans: Spans, serve: Any) -> Any:
    return lambda engine, **options: serve(engine, otlp_traces_endpoint="http://collector:4317", **options)


async def post(url: str, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    async with httpx.AsyncClient() as http:
        return await http.post(url + path, json=body, headers=headers)


async def test_span_says_what_was_asked_and_what_it_took(engine: Any, traced: Any, spans: Spans) -> None:
    async with traced(engine, served_model_name=["served"]) as url:
        body = {"prompt": "secret", "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "n": 2}
        answer = (await post(url, "/v1/completions", body)).json()
        [span] = spans.all()
    told = dict(span.attributes or {})
    assert span.name == "llm_request" and span.kind.name == "SERVER" and span.parent is None
    assert span.resource.attributes["service.name"] == "octavo"
    latencies = {name: told.pop(f"gen_ai.latency.{name}") for name in LATENCIES}
    assert all(isinstance(value, float) and value >= 0 for value in latencies.values())
    assert told == {
        "gen_ai.request.id": answer["id"],
        "gen_ai.response.model": "served",
        "gen_ai.request.n": 2,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.max_tokens": 7,
        "gen_ai.usage.prompt_tokens": answer["usage"]["prompt_tokens"],
        "gen_ai.usage.completion_tokens": answer["usage"]["completion_tokens"],
        "gen_ai.response.finish_reasons": (answer["choices"][0]["finish_reason"],),
    }
    assert "secret" not in span.to_json() and answer["choices"][0]["text"] not in told.values()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/generate"])
@pytest.mark.parametrize("stream", [False, True])
async def test_every_dialect_and_stream_makes_one(engine: Any, traced: Any, spans: Spans, path: str, stream: bool) -> None:
    body = {"prompt": "a"} if path == "/generate" else {"messages": [{"role": "user", "content": "a"}]}
    async with traced(engine) as url:
        assert (await post(url, path, {**body, "stream": stream}, traceparent=f"00-{TRACE}-{PARENT}-01")).status_code == 200
        [span] = spans.all()
    assert span.context is not None and f"{span.context.trace_id:032x}" == TRACE
    assert span.parent is not None and f"{span.parent.span_id:016x}" == PARENT


async def test_contexts_of_neighbours_do_not_mix(engine: Any, traced: Any, spans: Spans) -> None:
    async with traced(engine) as url, asyncio.TaskGroup() as group:
        for number in range(1, 9):
            context = {"traceparent": f"00-{number:032x}-{PARENT}-01"} if number % 2 else {}
            group.create_task(post(url, "/v1/completions", {"prompt": "a", "request_id": f"r{number}"}, **context))
    for span in spans.all():
        number = int(str((span.attributes or {})["gen_ai.request.id"]).rpartition("r")[2])
        assert span.context is not None
        assert (span.context.trace_id == number) == bool(number % 2) and (span.parent is None) == (number % 2 == 0)
    assert len(spans.all()) == 8


@pytest.mark.parametrize("wrong", ["", "00-0-0-01", f"00-{'0' * 32}-{PARENT}-01", "ff" * 40, "\u00fc"])
async def test_context_that_is_none_starts_a_trace(engine: Any, traced: Any, spans: Spans, wrong: str) -> None:
    async with traced(engine) as url, httpx.AsyncClient() as http:
        headers = [(b"traceparent", wrong.encode("latin-1")), (b"content-type", b"application/json")]
        assert (await http.post(f"{url}/v1/completions", json={"prompt": "a"}, headers=headers)).status_code == 200
        [span] = spans.all()
    assert span.parent is None


async def test_trace_that_is_not_sampled_gets_no_span(engine: Any, traced: Any, spans: Spans) -> None:
    async with traced(engine) as url:
        await post(url, "/v1/completions", {"prompt": "a"}, traceparent=f"00-{TRACE}-{PARENT}-00")
        assert spans.all() == []


async def test_several_prompts_make_several_and_a_refused_request_none(engine: Any, traced: Any, spans: Spans) -> None:
    async with traced(engine) as url:
        assert (await post(url, "/v1/completions", {"prompt": "a", "top_p": 2})).status_code == 400
        assert spans.all() == []
        await post(url, "/v1/completions", {"prompt": ["a", "b", "c"]})
        assert len(spans.all()) == 3


async def test_failure_and_abort_end_the_span(engine: Any, traced: Any, spans: Spans) -> None:
    async with traced(engine) as url:
        engine.hold.clear()
        async with httpx.AsyncClient() as http:
            with pytest.raises(httpx.ReadTimeout):
                await http.post(f"{url}/v1/completions", json={"prompt": "a"}, timeout=0.2)
        while engine.live:
            await asyncio.sleep(0.01)
        engine.hold.set()
        engine.error = EngineDeadError("The engine died.")
        assert (await post(url, "/v1/completions", {"prompt": "a"})).status_code == 500
        aborted, failed = spans.all()
    assert dict(aborted.attributes or {})["gen_ai.response.finish_reasons"] == ("abort",) and aborted.status.is_unset
    assert dict(failed.attributes or {})["gen_ai.response.finish_reasons"] == ("error",) and not failed.status.is_ok
    assert "gen_ai.latency.e2e" in (aborted.attributes or {}) and "gen_ai.latency.time_in_queue" not in (aborted.attributes or {})


async def test_without_the_flag_nothing_is_traced(engine: Any, url: str) -> None:
    assert (await post(url, "/v1/completions", {"prompt": "a"}, traceparent=f"00-{TRACE}-{PARENT}-01")).status_code == 200


# ---- the way to the collector ----------------------------------------------------------------------------------------


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Taker)
        self.got: list[tuple[str, ExportTraceServiceRequest]] = []


class _Taker(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
        self.server.got.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.mark.parametrize("path", ["", "/", "/v1/traces", "/own"])
async def test_spans_reach_a_collector_by_the_time_the_server_has_ended(
    engine: Any, serve: Any, collector: Collector, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-service")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    async with serve(engine, otlp_traces_endpoint=f"http://127.0.0.1:{collector.server_port}{path}") as url:
        await post(url, "/v1/completions", {"prompt": "a"})
    [(taken_at, message)] = collector.got
    assert taken_at == (path if len(path) > 1 else "/v1/traces")
    [resource] = message.resource_spans
    assert "my-service" in [attribute.value.string_value for attribute in resource.resource.attributes]
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == ["llm_request"]


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://127.0.0.1:9/v1/traces"])
async def test_collector_that_does_not_answer_costs_no_request(
    engine: Any, serve: Any, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setattr(tracing.Tracing.shutdown, "__defaults__", (0.1,))
    async with serve(engine, otlp_traces_endpoint=endpoint) as url:
        assert (await post(url, "/v1/completions", {"prompt": "a"})).status_code == 200


@pytest.mark.parametrize(
    ("endpoint", "variable", "protocol"),
    [
        ("http://localhost:4317", "", "grpc"),
        ("grpc://localhost:4317", "", "grpc"),
        ("http://localhost:4318", "", "http/protobuf"),
        ("https://collector.example/v1/traces", "", "http/protobuf"),
        ("http://localhost:4318", "grpc", "grpc"),
        ("http://localhost:4317", "http/protobuf", "http/protobuf"),
    ],
)
def test_protocol_is_the_urls_unless_the_variable_says(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, variable: str, protocol: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", variable)
    assert tracing.protocol_of(endpoint) == protocol


def test_unknown_protocol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    with pytest.raises(ConfigError, match="http/protobuf"):
        tracing.start("http://localhost:4317")


@pytest.mark.parametrize("endpoint", ["localhost:4317", "ftp://a", "http://", "http://a b", "http://user:secret@host"])
def test_endpoint_that_is_no_url_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="otlp_traces_endpoint"):
        parse_serve(["--otlp-traces-endpoint", endpoint])


@pytest.mark.parametrize("endpoint", ["http://localhost:4317", "http://localhost:4318"])
def test_without_the_extra_the_server_does_not_start(engine: Any, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry.exporter")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    with pytest.raises(ConfigError, match=r"pip install 'octavo\[otel\]'"):
        build_app(engine, engine.options, ServerOptions(otlp_traces_endpoint=endpoint))
