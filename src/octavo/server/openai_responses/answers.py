"""The answer of OpenAI's responses API, and the events of its streams. Each event's tag is its type and its name."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    """The text of a message."""

    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []


class OutputMessage(msgspec.Struct, tag_field="type", tag="message"):
    """The assistant's message. ``status`` is in_progress, completed or incomplete."""

    id: str
    status: str
    content: list[OutputText]
    role: str = "assistant"


class InputTokensDetails(msgspec.Struct):
    """``cached_tokens``: prompt tokens found in the prefix cache."""

    cached_tokens: int


class OutputTokensDetails(msgspec.Struct):
    """``reasoning_tokens``: always 0; what a model reasons counts as its text."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct):
    """Tokens read and made."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(msgspec.Struct):
    """Why an answer is not whole."""

    reason: str


class ResponseError(msgspec.Struct):
    """Why an answer failed."""

    code: str
    message: str


class TextFormatAnswer(msgspec.Struct):
    """The form that was asked for."""

    type: str = "text"
    name: str | UnsetType = UNSET
    description: str | UnsetType | None = UNSET
    schema: dict[str, Any] | UnsetType = UNSET
    strict: bool | UnsetType = UNSET


class TextAnswer(msgspec.Struct):
    """How the text was asked to be."""

    format: TextFormatAnswer
    verbosity: str = "medium"


class ReasoningAnswer(msgspec.Struct):
    """How the model was asked to reason: it was not."""

    effort: str | None = None
    summary: str | None = None


class ResponsesResponse(msgspec.Struct):
    """The answer of ``/v1/responses``. ``status`` is in_progress, completed, incomplete or failed."""

    id: str
    created_at: int
    model: str
    status: str
    output: list[OutputMessage]
    temperature: float
    top_p: float
    text: TextAnswer
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] = {}
    completed_at: int | None = None
    usage: ResponseUsage | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    object: str = "response"
    background: bool = False
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    reasoning: ReasoningAnswer = msgspec.field(default_factory=ReasoningAnswer)
    service_tier: str = "default"
    store: bool = False
    tool_choice: str = "auto"
    tools: list[Any] = []
    top_logprobs: int = 0
    truncation: str = "disabled"


# ---- events ----------------------------------------------------------------------------------------------------------


class ResponseCreated(msgspec.Struct, tag_field="type", tag="response.created"):
    """The first event."""

    sequence_number: int
    response: ResponsesResponse


class ResponseInProgress(msgspec.Struct, tag_field="type", tag="response.in_progress"):
    """The second event."""

    sequence_number: int
    response: ResponsesResponse


class OutputItemAdded(msgspec.Struct, tag_field="type", tag="response.output_item.added"):
    """A message begins, still empty."""

    sequence_number: int
    output_index: int
    item: OutputMessage


class ContentPartAdded(msgspec.Struct, tag_field="type", tag="response.content_part.added"):
    """A text begins, still empty."""

    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    part: OutputText


class OutputTextDelta(msgspec.Struct, tag_field="type", tag="response.output_text.delta"):
    """What is new of a text."""

    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[Any] = []


class OutputTextDone(msgspec.Struct, tag_field="type", tag="response.output_text.done"):
    """The whole text."""

    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: list[Any] = []


class ContentPartDone(msgspec.Struct, tag_field="type", tag="response.content_part.done"):
    """The whole text as a part."""

    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    part: OutputText


class OutputItemDone(msgspec.Struct, tag_field="type", tag="response.output_item.done"):
    """The whole message."""

    sequence_number: int
    output_index: int
    item: OutputMessage


class ResponseCompleted(msgspec.Struct, tag_field="type", tag="response.completed"):
    """The last event: the whole answer."""

    sequence_number: int
    response: ResponsesResponse


class ResponseIncomplete(msgspec.Struct, tag_field="type", tag="response.incomplete"):
    """The last event of an answer that was cut short by ``max_output_tokens`` or the context."""

    sequence_number: int
    response: ResponsesResponse


class ResponseFailed(msgspec.Struct, tag_field="type", tag="response.failed"):
    """The last event of an answer that failed."""

    sequence_number: int
    response: ResponsesResponse
