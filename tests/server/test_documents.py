"""``docs/api.md`` says what the code does: routes, fields, flags, metrics, and the shapes of its examples."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

import octavo
from octavo import errors
from octavo.cli import main as cli
from octavo.cli.flags import flag_name, serve_parser
from octavo.config import ENGINE_GROUPS, SchedulerOptions, ServerOptions
from octavo.frontend.input_processor import MAX_ID_CHARS
from octavo.frontend.outputs import CompletionOutput, Logprob, RequestOutput
from octavo.sampling_params import MAX_BIAS_ENTRIES, MAX_N, MAX_STOP_STRINGS, SamplingParams
from octavo.server.anthropic.protocol import MessagesRequest
from octavo.server.app import build_app
from octavo.server.auth import OPEN_PATHS
from octavo.server.connection import MAX_HEAD_BYTES, MAX_HEADERS, BoundedHttpProtocol
from octavo.server.errors import AuthenticationError, BodyTooLargeError, ContentTypeError, NotAvailableError, describe
from octavo.server.generation import MAX_PROMPTS
from octavo.server.http_server import KEEP_ALIVE_SECONDS
from octavo.server.ollama.protocol import OPTIONS_NOT_YET, OllamaChatRequest, OllamaGenerateRequest
from octavo.server.openai_responses.protocol import ResponsesRequest
from octavo.server.refused_fields import LABELS, MESSAGE_NOT_YET, NOT_YET
from octavo.structured_outputs import MAX_CHOICES, MAX_CONSTRAINT_BYTES, MAX_REGEX_BYTES

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
GENERATING = {"generate": "/generate", "completions": "/v1/completions", "chat": "/v1/chat/completions"}
OTHER = {
    "messages": "/v1/messages",
    "count_tokens": "/v1/messages/count_tokens",
    "responses": "/v1/responses",
    "ollama generate": "/api/generate",
    "ollama chat": "/api/chat",
    "show": "/api/show",
}
PATHS = {**GENERATING, **OTHER, "tokenize": "/tokenize", "detokenize": "/detokenize"}
"""The words of the tables' column ``on``; "all" is the first three."""
HIDDEN = {("HEAD", "/health"), ("POST", "/ping"), ("GET", "/docs"), ("GET", "/openapi.json")}
"""Routes that the OpenAPI document leaves out."""


# ---- reading the page ------------------------------------------------------------------------------------------------


def rows(head: str) -> list[list[str]]:
    """The rows of all tables whose first column has this head."""
    found: list[list[str]] = []
    inside = False
    for line in TEXT.splitlines():
        if not line.startswith("| "):
            inside = False
            continue
        cells = [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]
        if inside and not set(line) <= set("|- "):
            found.append(cells)
        inside = inside or cells[0] == head
    assert found, f"there is no table {head!r}"
    return found


def code(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def names(head: str) -> list[str]:
    """The first cells of a table."""
    found = [name for row in rows(head) for name in code(row[0])]
    assert len(found) == len(set(found)), f"a row of the table {head!r} stands twice"
    return found


def section(title: str) -> str:
    """The text under a heading of the second level."""
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def examples() -> list[tuple[str, str, str]]:
    """Every ``curl`` with the answer under it: the command, the answer's kind, the answer."""
    found = re.findall(r"```sh\n(curl .*?)```\n```(json|jsonl|sse)\n(.*?)```", TEXT, re.DOTALL)
    assert len(found) == TEXT.count("```sh\ncurl"), "a curl without an answer under it"
    return found


@pytest.fixture
def openapi(engine: Any) -> dict[str, Any]:
    return build_app(engine, engine.options, ServerOptions()).openapi()


# ---- routes ----------------------------------------------------------------------------------------------------------


async def test_table_of_endpoints_names_every_route_and_no_other(openapi: dict[str, Any], url: str) -> None:
    told = {(method, path) for row in rows("method") for path in code(row[1]) for method in row[0].split(", ")}
    assert told == {(method.upper(), path) for path, methods in openapi["paths"].items() for method in methods} | HIDDEN
    async with httpx.AsyncClient() as http:
        for method, path in HIDDEN:
            assert (await http.request(method, url + path)).status_code == 200, path


def test_every_path_the_page_mentions_is_an_endpoint() -> None:
    told = {path for row in rows("method") for path in code(row[1])}
    mentioned = set(re.findall(r"(?:`|`[A-Z]+ |:8000)(/[a-z][a-z0-9_/{}.]*)", TEXT)) - {"/v1"}
    assert mentioned <= told, mentioned - told


def test_open_routes_are_those_that_ask_for_no_key() -> None:
    sentence = re.search(r"every route but (.*?) asks for", section("Limits and keys"), re.DOTALL)
    assert sentence is not None and set(code(sentence[1])) == OPEN_PATHS


# ---- fields ----------------------------------------------------------------------------------------------------------


def alternatives(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas of a union, or the one schema."""
    return schema.get("anyOf") or schema.get("oneOf") or [schema]


def properties(
    schemas: dict[str, Any], schema: dict[str, Any], place: str = "", above: tuple[str, ...] = ()
) -> Iterator[tuple[str, str, bool]]:
    """The fields of a body and of the models in it: each with its type in the page's words, and whether it must be sent.

    A model that holds itself is entered once.
    """
    for one in alternatives(schema):
        if "items" in one:
            yield from properties(schemas, one["items"], f"{place}[]", above)
        elif "$ref" in one and one["$ref"] not in above:
            model = schemas[one["$ref"].rpartition("/")[2]]
            for field, below in model.get("properties", {}).items():
                name = f"{place}.{field}" if place else field
                yield name, type_of(below), field in model.get("required", ())
                yield from properties(schemas, below, name, (*above, one["$ref"]))


def type_of(schema: dict[str, Any]) -> str:
    """A JSON schema as the page has it: ``string or [integer]``; null goes without saying."""
    if len(alternatives(schema)) > 1:
        return " or ".join(dict.fromkeys(type_of(one) for one in alternatives(schema) if one.get("type") != "null"))
    if schema.get("type") == "array":
        return f"[{type_of(schema.get('items', {}))}]"
    return str(schema.get("type", "object"))


def bodies(openapi: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every path that takes a body, with the body's schema."""
    for path, methods in openapi["paths"].items():
        for method in methods.values():
            if "requestBody" in method:
                yield path, method["requestBody"]["content"]["application/json"]["schema"]


def paths_of(on: str) -> list[str]:
    """What the column ``on`` says: words of ``PATHS``, "all", or paths themselves in backticks."""
    words = list(GENERATING) if on == "all" else on.split(", ")
    return [word.strip("`") if word.startswith("`") else PATHS[word] for word in words]


def test_tables_of_fields_have_every_field_with_its_type_and_no_other(openapi: dict[str, Any]) -> None:
    told: dict[tuple[str, str], str] = {}
    for name, kind, _, _, on in rows("field"):
        for path in paths_of(on):
            place = (path, code(name)[0])
            assert place not in told, f"{place} stands twice"
            told[place] = kind
    kinds: dict[tuple[str, str], dict[str, None]] = {}  # models of one union may have a field of the same name
    for path, schema in bodies(openapi):
        for field, kind, _ in properties(openapi["components"]["schemas"], schema):
            kinds.setdefault((path, field), {}).update(dict.fromkeys(kind.split(" or ")))
    assert told == {place: " or ".join(kind) for place, kind in kinds.items()}


def test_tables_of_fields_say_which_must_be_sent(openapi: dict[str, Any]) -> None:
    """The page may say so of more: whether some fields are needed hangs on others, and is no matter of the schema."""
    told = {(path, code(name)[0]) for name, _, default, _, on in rows("field") if default == "required" for path in paths_of(on)}
    known = {
        (path, field)
        for path, schema in bodies(openapi)
        for field, _, required in properties(openapi["components"]["schemas"], schema)
        if required
    }
    assert known <= told, known - told


def test_defaults_of_fields_are_those_of_sampling_params() -> None:
    values = {name: getattr(SamplingParams(), name) for name in SamplingParams.__struct_fields__}
    for name, kind, default, _, on in rows("field"):
        field = code(name)[0]
        if field not in values or field in ("max_tokens", "best_of", "seed") or (field == "logprobs" and on == "chat"):
            continue
        shown = default.removeprefix("own, or ")
        expected = "none" if values[field] in (None, [], {}) else json.dumps(values[field]).removesuffix(".0")
        assert shown == expected, f"{field} ({kind}) is told to default to {shown}"


def test_table_of_refused_fields_has_each_with_what_is_accepted() -> None:
    told = {code(name)[0]: set(code(values)) for name, values in rows("refused field")}
    known = dict(NOT_YET) | {f"messages[].{name}": values for name, values in MESSAGE_NOT_YET.items()}
    assert told == {name: {json.dumps(value) for value in values} for name, values in known.items()}


def test_table_of_fields_refused_by_other_apis_has_each_with_what_is_accepted() -> None:
    told = {(word, code(name)[0]): set(code(values)) for name, values, on in rows("refused elsewhere") for word in on.split(", ")}
    tables = {
        ("messages", ""): MessagesRequest.not_yet,
        ("responses", ""): ResponsesRequest.not_yet,
        ("ollama generate", ""): OllamaGenerateRequest.not_yet,
        ("ollama chat", ""): OllamaChatRequest.not_yet,
        ("ollama chat", "messages[]."): OllamaChatRequest.message_not_yet,
        ("ollama generate", "options."): OPTIONS_NOT_YET,
        ("ollama chat", "options."): OPTIONS_NOT_YET,
    }
    assert told == {
        (word, prefix + name): {json.dumps(value) for value in values}
        for (word, prefix), table in tables.items()
        for name, values in table.items()
    }


def test_table_of_labels_has_each() -> None:
    assert set(names("label")) == LABELS


# ---- flags, commands, metrics ----------------------------------------------------------------------------------------


def test_tables_of_flags_have_every_flag_with_its_default_and_no_other() -> None:
    told = {tuple(code(row[0])): row[1] for row in rows("flag")}
    known = {("--config",): "none"}
    for options in (*ENGINE_GROUPS.values(), ServerOptions):
        for field in dataclasses.fields(options):
            known[*field.metadata["flags"], flag_name(field.name)] = default_of(field)
    assert told == known
    spelled = {name for flags in told for name in flags}
    taken = {name for name in serve_parser()._option_string_actions if not name.startswith("--no-")}
    assert spelled == taken - {"-h", "--help"}


def default_of(field: dataclasses.Field[Any]) -> str:
    """A flag's default as the page has it."""
    if field.default in (dataclasses.MISSING, None, ""):
        return "none"
    if isinstance(field.default, bool):
        return "yes" if field.default else "no"
    return f"{field.default // 2**20}M" if field.name.endswith("_bytes") else str(field.default)


def test_rows_of_flags_name_every_choice() -> None:
    told = {code(row[0])[-1]: row[2] for row in rows("flag")}
    for options in (*ENGINE_GROUPS.values(), ServerOptions):
        for field in dataclasses.fields(options):
            words = re.findall(r"[\w]+", told[flag_name(field.name)])
            assert set(map(str, field.metadata["choices"] or ())) <= set(words), field.name


def test_table_of_commands_has_each() -> None:
    assert [name.split()[1] for name in names("command")] == list(cli.COMMANDS)


async def test_table_of_metrics_has_every_metric_with_its_type_and_no_other(engine: Any, url: str) -> None:
    async with httpx.AsyncClient() as http:
        await http.post(f"{url}/v1/completions", json={"prompt": "abc"})
        text = (await http.get(f"{url}/metrics")).text
    known = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    assert {code(row[0])[0]: row[1] for row in rows("metric")} == known
    labels = {name for family in text_string_to_metric_families(text) for sample in family.samples for name in sample.labels}
    assert labels <= {*code(section("Metrics")), "le"}, labels


# ---- errors and limits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidRequestError("out of range"),
        errors.InvalidRequestError("too long", code="context_length_exceeded"),
        errors.ModelNotFoundError("x"),
        errors.QueueFullError("x"),
        errors.ModelLoadError("x"),
        errors.EngineDeadError("x"),
        RuntimeError("x"),
        AuthenticationError("x"),
        BodyTooLargeError(1),
        ContentTypeError("x"),
        NotAvailableError("x"),
    ],
)
def test_table_of_errors_has_what_each_exception_becomes(error: Exception) -> None:
    answer = describe(error)
    assert [str(answer.status), f"`{answer.body.error.type}`", f"`{answer.body.error.code}`"] in [row[:3] for row in rows("status")]


def test_table_of_limits_has_the_numbers_of_the_code() -> None:
    text = section("Limits and keys")
    for row in (
        f"| body | {ServerOptions().max_body_bytes // 2**20} MiB (",
        f"| request line and headers | {MAX_HEAD_BYTES // 2**10} KiB and {MAX_HEADERS} headers;",
        f"| time for a request's head | {BoundedHttpProtocol.head_seconds:g} s;",
        f"| pause in a request's body | {BoundedHttpProtocol.body_seconds:g} s;",
        f"| time without reading while an answer waits | {BoundedHttpProtocol.write_seconds:g} s;",
        f"| idle connection | {KEEP_ALIVE_SECONDS} s ",
        f"| prompts in one completions request | {MAX_PROMPTS} |",
        f"| `n` and `best_of` | {MAX_N} |",
        f"| `stop` strings, `bad_words` | {MAX_STOP_STRINGS} each |",
        f"| `logit_bias` entries | {MAX_BIAS_ENTRIES} |",
        f"| bytes of a JSON schema, of a grammar, of all choices | {MAX_CONSTRAINT_BYTES} |",
        f"| bytes of a regular expression | {MAX_REGEX_BYTES} |",
        f"| choices | {MAX_CHOICES} |",
        f"| log probabilities at a position | {ServerOptions().max_logprobs} (",
        f"| characters of `request_id` and `cache_salt` | {MAX_ID_CHARS} |",
        f"| requests that wait | {SchedulerOptions().max_num_queued_reqs} (",
    ):
        assert row in text, row


# ---- Python ----------------------------------------------------------------------------------------------------------


def test_table_of_sampling_params_has_every_parameter_with_its_default() -> None:
    told = {code(row[0])[0]: ast.literal_eval(code(row[1])[0]) for row in rows("parameter")}
    assert told == {name: getattr(SamplingParams(), name) for name in SamplingParams.__struct_fields__}


def test_table_of_beam_search_params_has_every_parameter_with_its_default() -> None:
    told = {code(row[0])[0]: row[1].strip("`") for row in rows("beam parameter")}
    fields = msgspec.structs.fields(octavo.BeamSearchParams)
    assert told == {field.name: "required" if field.required else repr(field.default) for field in fields}


@pytest.mark.parametrize("kind", [RequestOutput, CompletionOutput, Logprob])
def test_tables_of_outputs_have_every_attribute(kind: type) -> None:
    assert names(kind.__name__) == [field.name for field in dataclasses.fields(kind)]


@pytest.mark.parametrize("name", ["LLM", "AsyncLLM"])
def test_tables_of_methods_have_every_public_method_with_its_parameters(name: str) -> None:
    kind = getattr(octavo, name)
    methods = {found: value for found, value in inspect.getmembers(kind, inspect.isfunction) if not found.startswith("_")}
    told = {code(row[0])[0]: row[1] for row in rows(f"{name} method")}
    assert set(told) == set(methods)
    for method, text in told.items():
        shown = re.match(r"`\((.*?)\)`", text)
        parameters = [one for one in inspect.signature(methods[method]).parameters if one != "self"]
        assert re.findall(r"(?:^|, )(\w+)", shown[1] if shown else "") == parameters, method


def test_examples_in_python_are_python_and_import_what_exists() -> None:
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == TEXT.count("```python")
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "octavo":
                assert {alias.name for alias in node.names} <= set(octavo.__all__)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "SamplingParams":
                assert {str(keyword.arg) for keyword in node.keywords} <= set(SamplingParams.__struct_fields__)


# ---- examples over HTTP ----------------------------------------------------------------------------------------------


def shape(value: Any, name: str = "") -> Any:
    """Names and types of a JSON value: a list has its first entry's and its second's where that is of another type."""
    if isinstance(value, dict):
        if name == "top_logprobs" and all(isinstance(entry, float) for entry in value.values()):
            return "texts"  # keyed by what the tokens say
        if value and all(key.isdecimal() for key in value):
            return {"id": shape(next(iter(value.values())))}
        return {key: shape(entry, key) for key, entry in sorted(value.items())}
    if isinstance(value, list):
        return list({json.dumps(made): made for made in (shape(entry, name) for entry in value)}.values())
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def shapes(kind: str, text: str) -> list[str]:
    """The shapes of an answer: one, or each chunk's."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("event: ")]
    parts = [text] if kind == "json" else [line.removeprefix("data: ") for line in lines]
    return [part if part == "[DONE]" else json.dumps(shape(json.loads(part))) for part in parts]


@pytest.mark.parametrize(("command", "kind", "answer"), examples())
async def test_example_has_the_shape_of_the_real_answer(engine: Any, serve: Any, command: str, kind: str, answer: str) -> None:
    path = re.search(r":8000(\S+)", command)
    body = re.search(r"-d '(.*)'", command, re.DOTALL)
    assert path is not None, command
    headers = dict(header.split(": ") for header in re.findall(r"-H '(.*?)'", command))
    call = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
    text = "The capital of France is Paris."  # long enough for several chunks
    engine.reply = lambda prompt, index: call if '"tools"' in command else text
    async with serve(engine, served_model_name=["llama-2-7b-chat-hf"]) as url, httpx.AsyncClient() as http:
        if body is None:
            made = await http.get(url + path[1])
        else:
            made = await http.post(url + path[1], content=body[1], headers=headers)
    told, real = shapes(kind, answer), shapes(kind, made.text)
    assert set(real) <= set(told) and (real[0], real[-1]) == (told[0], told[-1])
    assert (
        made.headers["content-type"].partition(";")[0]
        == {
            "json": "application/json",
            "jsonl": "application/x-ndjson",
            "sse": "text/event-stream",
        }[kind]
    )


def test_every_field_of_every_answer_is_on_the_page(openapi: dict[str, Any]) -> None:
    for path, methods in openapi["paths"].items():
        for method in methods.values():
            for status, answer in method["responses"].items():
                for content in answer.get("content", {}).values():
                    for field, _, _ in properties(openapi["components"]["schemas"], content.get("schema", {})):
                        name = field.rpartition(".")[2].removesuffix("[]")
                        assert re.search(rf'["`.]{name}["`.]', TEXT), f"{path} answers {status} with {field}"


def test_every_status_of_every_route_is_in_the_table_of_errors(openapi: dict[str, Any]) -> None:
    told = {row[0] for row in rows("status")}
    for path, methods in openapi["paths"].items():
        for method in methods.values():
            assert {status for status in method["responses"] if status != "200"} <= told, path
