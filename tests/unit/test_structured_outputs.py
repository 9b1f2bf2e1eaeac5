"""The shape of a structured-output request; whether a grammar compiles is tested elsewhere."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from octavo import SamplingParams, StructuredOutputs
from octavo.errors import InvalidRequestError
from octavo.structured_outputs import MAX_CHOICES, MAX_CONSTRAINT_BYTES, MAX_REGEX_BYTES


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "exactly one of"),
        ({"json_object": False}, "exactly one of"),
        ({"starts_after": "</think>"}, "exactly one of"),
        ({"regex": "a", "choice": ["a"]}, "has regex and choice"),
        ({"json": {}, "json_object": True}, "has json and json_object"),
        ({"json": 3}, "json must be a JSON schema"),
        ({"json": ""}, "non-empty"),
        ({"json": {"const": float("nan")}}, "no JSON schema"),
        ({"json": {"const": {1, 2}}}, "no JSON schema"),
        ({"json": "x" * (MAX_CONSTRAINT_BYTES + 1)}, f"at most {MAX_CONSTRAINT_BYTES} bytes"),
        ({"json_object": 1}, "json_object must be true or false"),
        ({"regex": 3}, "regex must be a non-empty string"),
        ({"regex": ""}, "non-empty"),
        ({"regex": "\ud800"}, "lone surrogate"),
        ({"regex": "é" * MAX_REGEX_BYTES}, f"at most {MAX_REGEX_BYTES} bytes"),
        ({"choice": []}, "at least one string"),
        ({"choice": "ab"}, "must be a list"),
        ({"choice": ["a", ""]}, "non-empty strings"),
        ({"choice": ["a"] * (MAX_CHOICES + 1)}, f"at most {MAX_CHOICES} strings"),
        ({"choice": ["a" * 100_000] * 3}, f"at most {MAX_CONSTRAINT_BYTES} bytes"),
        ({"grammar": ["start"]}, "grammar must be a non-empty string"),
        ({"regex": "a", "starts_after": ""}, "non-empty"),
        ({"regex": "a", "starts_after": "x" * 300}, "at most"),
    ],
)
def test_a_wrong_shape_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        StructuredOutputs(**fields)
    assert caught.value.param == "structured_outputs"


def test_a_schema_is_kept_as_text_in_the_order_of_its_keys() -> None:
    made = StructuredOutputs(json={"type": "object", "properties": {"b": {}, "a": {"const": "é"}}})
    assert made.schema == '{"type": "object", "properties": {"b": {}, "a": {"const": "é"}}}'
    assert StructuredOutputs(json='{"type": "object"}').schema == '{"type": "object"}'


@pytest.mark.parametrize(
    ("fields", "kind"),
    [({"json": {}}, "json"), ({"json_object": True}, "json_object"), ({"choice": ["a"]}, "choice"), ({"grammar": "start: /a/"}, "grammar")],
)
def test_it_crosses_the_wire_within_sampling_params(fields: dict[str, Any], kind: str) -> None:
    params = SamplingParams(structured_outputs=StructuredOutputs(**fields, starts_after="</think>"))
    received = msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams)
    assert received == params
    assert received.structured_outputs is not None
    assert received.structured_outputs.kind == kind


def test_sampling_params_take_nothing_else() -> None:
    with pytest.raises(InvalidRequestError, match="must be a StructuredOutputs"):
        SamplingParams(structured_outputs={"regex": "a"})  # type: ignore[arg-type]
