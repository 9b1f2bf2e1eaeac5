"""The fields that ask for a form, in every spelling, from the socket to what the engine is told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from byte_model import byte_model
from fake_engine import FakeCore, FakeProcess, FakeSpawner

from octavo.config import engine_options
from octavo.engine.messages import AddRequest
from octavo.frontend import client as module
from octavo.frontend import replica
from octavo.frontend.chat_template import ChatTemplate
from octavo.frontend.client import EngineClient
from octavo.structured_outputs import MAX_CHOICES, MAX_CONSTRAINT_BYTES, MAX_REGEX_BYTES, StructuredOutputs
from octavo.vocabulary import Vocabulary

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TEXT = json.dumps(SCHEMA)
PATHS = ["/v1/completions", "/v1/chat/completions", "/generate"]


class Client(EngineClient):
    """The real client before an engine that makes letters; the server's fixtures read these."""

    def __init__(self) -> None:
        self.options = engine_options(max_model_len=512)
        super().__init__(self.options)
        self.hold = type("Hold", (), {"set": lambda self: None})()


@pytest.fixture
def spawner(monkeypatch: pytest.MonkeyPatch) -> FakeSpawner:
    fake = FakeSpawner(FakeCore)
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", {})
    monkeypatch.setattr(replica, "EngineProcess", fake)
    monkeypatch.setattr(module, "resolve", lambda model, revision, progress: "files")
    monkeypatch.setattr(module, "load_served_model", lambda options, files: byte_model(max_model_len=128, chat_template=template))
    return fake


@pytest.fixture
async def address(spawner: FakeSpawner, serve: Any) -> AsyncIterator[str]:
    async with serve(Client()) as url:
        yield url


async def ask(url: str, path: str, **fields: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else {"prompt": "a"}
    async with httpx.AsyncClient() as http:
        return await http.post(url + path, json={**body, "max_tokens": 2, **fields})


def told(process: FakeProcess) -> StructuredOutputs | None:
    return process.adds[-1].params.structured_outputs


SPELLINGS: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": {"type": "json_object"}}, {"json_object": True}),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}}, {"json": TEXT}),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "description": "y", "schema": TEXT}}}, {"json": TEXT}),
    ({"structured_outputs": {"json": SCHEMA}}, {"json": TEXT}),
    ({"structured_outputs": {"json": TEXT, "json_object": False}}, {"json": TEXT}),
    ({"structured_outputs": {"json_object": True, "regex": None}}, {"json_object": True}),
    ({"structured_outputs": {"regex": "a+"}}, {"regex": "a+"}),
    ({"structured_outputs": {"choice": ["a", "b"]}}, {"choice": ["a", "b"]}),
    ({"structured_outputs": {"grammar": 'start: "a"'}}, {"grammar": 'start: "a"'}),
    ({"guided_json": SCHEMA}, {"json": TEXT}),
    ({"guided_json": TEXT, "response_format": {"type": "text"}}, {"json": TEXT}),
    ({"guided_regex": "a+"}, {"regex": "a+"}),
    ({"guided_choice": ["a"]}, {"choice": ["a"]}),
    ({"guided_grammar": 'start: "a"', "guided_json": None, "structured_outputs": None}, {"grammar": 'start: "a"'}),
]


@pytest.mark.parametrize("path", PATHS)
async def test_every_spelling_reaches_the_engine(spawner: FakeSpawner, address: str, path: str) -> None:
    for fields, expected in SPELLINGS:
        answer = await ask(address, path, **fields)
        assert answer.status_code == 200, answer.text
        assert told(spawner.processes[0]) == (StructuredOutputs(**expected) if expected else None), fields


async def test_gbnf_reaches_the_engine_as_lark(spawner: FakeSpawner, address: str) -> None:
    assert (await ask(address, "/generate", guided_grammar='root ::= "a" | "b"')).status_code == 200
    form = told(spawner.processes[0])
    assert form is not None and form.grammar is not None and form.grammar.startswith("%llguidance")


async def test_the_vocabulary_goes_ahead_of_the_first_form_and_only_once(spawner: FakeSpawner, address: str) -> None:
    assert (await ask(address, "/generate")).status_code == 200
    for _ in range(2):
        assert (await ask(address, "/generate", guided_regex="a+")).status_code == 200
    assert [type(message) for message in spawner.processes[0].sent] == [AddRequest, Vocabulary, AddRequest, AddRequest]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "one of guided_regex, guided_choice"),
        ({"response_format": {"type": "json_object"}, "guided_json": SCHEMA}, "guided_json", "response_format"),
        ({"structured_outputs": {"regex": "a", "json": SCHEMA}}, "structured_outputs", "json and regex"),
        ({"structured_outputs": {}}, "structured_outputs", "exactly one of"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs", "exactly one of"),
        ({"structured_outputs": {"jsn": SCHEMA}}, "structured_outputs.jsn", "unknown field"),
        ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern", "unknown field"),
        ({"structured_outputs": {"starts_after": "x", "regex": "a"}}, "structured_outputs.starts_after", "unknown field"),
        ({"structured_outputs": "json"}, "structured_outputs", "object"),
        ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs", "non-empty"),
        ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice[0]", "string"),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json", "object"),
        ({"guided_choice": []}, "guided_choice", "at least one"),
        ({"guided_choice": ["a"] * (MAX_CHOICES + 1)}, "guided_choice", str(MAX_CHOICES)),
        ({"guided_regex": "a" * (MAX_REGEX_BYTES + 1)}, "guided_regex", str(MAX_REGEX_BYTES)),
        ({"guided_grammar": "a" * (MAX_CONSTRAINT_BYTES + 1)}, "guided_grammar", str(MAX_CONSTRAINT_BYTES)),
        ({"guided_json": {"a": "a" * MAX_CONSTRAINT_BYTES}}, "guided_json", str(MAX_CONSTRAINT_BYTES)),
        ({"guided_regex": ""}, "guided_regex", "non-empty"),
        ({"guided_regex": "("}, "guided_regex", "unclosed group"),
        ({"guided_json": {"type": "strin"}}, "guided_json", "strin"),
        ({"guided_json": "{"}, "guided_json", "JSON schema"),
        ({"guided_json": {"not": {}}}, "guided_json", "not"),
        ({"guided_grammar": "start: foo"}, "guided_grammar", "foo"),
        ({"guided_grammar": "root ::= foo"}, "guided_grammar", "foo"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format", "json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}}, "response_format", "nothing can begin"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema", "unknown field"),
        ({"response_format": {}}, "response_format.type", "required"),
        ({"response_format": "json"}, "response_format", "object"),
        ({"guided_decoding_backend": "outlines", "guided_regex": "a"}, "guided_decoding_backend", "not available"),
    ],
)
async def test_what_cannot_be_held_to_is_400_naming_the_field(
    spawner: FakeSpawner, address: str, fields: dict[str, Any], param: str, words: str
) -> None:
    for path in PATHS:
        answer = await ask(address, path, **fields)
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["type"] == "invalid_request_error", error
        assert error["param"] == param and words in error["message"], error
    assert not spawner.processes[0].adds


async def test_a_bad_form_is_an_ordinary_error_of_a_stream_too(address: str) -> None:
    answer = await ask(address, "/v1/chat/completions", stream=True, guided_regex="(")
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "guided_regex"
