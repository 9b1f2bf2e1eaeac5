"""Requests drawn from the server's own OpenAPI document, right and wrong: no 500, no hang, and answers as the document says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance
from serving import Server, serving

SECONDS = 20
"""Longest a single answer may take. The context is short, so that an answer without a limit is."""
EXAMPLES = 60
STREAMS = ("text/event-stream", "application/x-ndjson")


@pytest.fixture(scope="module")
def short_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("fuzz"), "--max-model-len", "128", "--kv-cache-memory-bytes", "64M") as running:
        yield running


def answers_as_documented(case: Any) -> None:
    response = case.call(timeout=SECONDS)
    checks = [not_a_server_error]
    if not response.headers.get("content-type", [""])[0].startswith(STREAMS):  # a stream's parts are not one JSON document
        checks += [status_code_conformance, content_type_conformance, response_schema_conformance]
    case.validate_response(response, checks=checks)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_operation_answers_as_the_document_says(short_server: Server, mode: GenerationMode) -> None:
    document: Any = schemathesis.openapi.from_url(f"{short_server.url}/openapi.json")
    operations = [found.ok() for found in document.get_all_operations()]
    served = [operation for operation in operations if "501" not in operation.definition.raw["responses"]]
    assert len(served) > 15
    for operation in served:
        if mode is GenerationMode.NEGATIVE and operation.method.upper() == "GET":
            continue  # nothing to get wrong
        check = given(operation.as_strategy(generation_mode=mode))(answers_as_documented)
        settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )(check)()
    short_server.wait_until(lambda: short_server.metric("vllm:num_requests_running") == 0, 10, "an idle engine")
    assert short_server.metric("vllm:kv_cache_usage_perc") == 0
