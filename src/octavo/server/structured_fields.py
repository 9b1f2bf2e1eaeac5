"""The fields that ask for a form of the output, in every spelling clients know, and what they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from octavo.errors import InvalidRequestError
from octavo.structured_outputs import StructuredOutputs

if TYPE_CHECKING:
    from octavo.server.protocol import SamplingFields


class JsonSchemaFormat(BaseModel):
    """``response_format.json_schema``. The schema is always held to, whatever ``strict`` says."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    name: str | None = Field(default=None, description="A label.", max_length=64)
    description: str | None = Field(default=None, description="A label.")
    schema_: dict[str, Any] | str | None = Field(default=None, alias="schema", description="The schema, as an object or as JSON text.")
    strict: bool | None = Field(default=None, description="Has no effect: the schema is always held to.")


class ResponseFormat(BaseModel):
    """OpenAI's spelling."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputsFields(BaseModel):
    """vLLM's spelling; exactly one is given."""

    model_config = ConfigDict(strict=True, extra="forbid")

    json_: dict[str, Any] | str | None = Field(default=None, alias="json", description="A JSON schema, as an object or as JSON text.")
    json_object: bool | None = Field(default=None, description="Any JSON object.")
    regex: str | None = Field(default=None, description="What the whole output must match.")
    choice: list[str] | None = Field(default=None, description="The strings of which the output is one.")
    grammar: str | None = Field(default=None, description="A grammar in Lark's syntax or in GBNF.")


_OLDER_NAMES = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}


def form_field(body: SamplingFields) -> str | None:
    """The field that asks for a form; None where none does.

    Raises:
        InvalidRequestError: several do.
    """
    asked = [name for name in ("structured_outputs", *_OLDER_NAMES) if getattr(body, name) is not None]
    if body.response_format is not None and body.response_format.type != "text":
        asked.insert(0, "response_format")
    if len(asked) > 1:
        raise InvalidRequestError(f"An output has one form: give one of {', '.join(asked)}, not {len(asked)}.", asked[1])
    return asked[0] if asked else None


def structured_outputs(body: SamplingFields) -> StructuredOutputs | None:
    """The form that a request asks for, in whichever field.

    Raises:
        InvalidRequestError: naming that field.
    """
    field = form_field(body)
    if field is None:
        return None
    try:
        return StructuredOutputs(**_given(body, field))
    except InvalidRequestError as error:
        error.param = field
        raise


def _given(body: SamplingFields, field: str) -> dict[str, Any]:
    if field == "structured_outputs":
        assert body.structured_outputs is not None
        return body.structured_outputs.model_dump(by_alias=True, exclude_none=True)
    if field in _OLDER_NAMES:
        return {_OLDER_NAMES[field]: getattr(body, field)}
    asked = body.response_format
    assert asked is not None
    if asked.type == "json_object":
        return {"json_object": True}
    if asked.json_schema is None or asked.json_schema.schema_ is None:
        raise InvalidRequestError("response_format of type json_schema needs json_schema.schema, the schema.")
    return {"json": asked.json_schema.schema_}
