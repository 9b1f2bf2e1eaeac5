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


class FunctionCallItem(msgspec.Struct, tag_field="type", tag="function_call"):
    """A call. ``arguments`` is JSON text."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: str


class ReasoningText(msgspec.Struct, tag_field="type", tag="reasoning_text"):
    """What the model thought."""

    text: str


class ReasoningItem(msgspec.Struct, tag_field="type", tag="reasoning"):
    """What the model thought before it answered; nothing of it is summarised."""

    id: str
    status: str
    content: list[ReasoningText]
    summary: list[Any] = []


OutputItem = OutputMessage | FunctionCallItem | ReasoningItem


class InputTokensDetails(msgspec.Struct):
    """``cached_tokens``: prompt tokens found in the prefix cache."""

    cached_tokens: int


class OutputTokensDetails(msgspec.Struct):
    """``reasoning_tokens``: always 0; what a model reasons is counted with its text."""

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
    """How the model was asked to reason."""

    effort: str | None = None
    summary: str | None = None


class ResponsesResponse(msgspec.Struct):
    """The answer of ``/v1/responses``. ``status`` is in_progress, completed, incomplete or failed."""

    id: str
    created_at: int
    model: str
    status: str
    output: list[OutputItem]
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
    tool_choice: str | dict[str, Any] = "auto"
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
    """An item begins, still empty."""

    sequence_number: int
    output_index: int
    item: OutputItem


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


class ReasoningTextDelta(msgspec.Struct, tag_field="type", tag="response.reasoning_text.delta"):
    """What is new of a thought."""

    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    delta: str


class ReasoningTextDone(msgspec.Struct, tag_field="type", tag="response.reasoning_text.done"):
    """The whole thought."""

    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    text: str


class ArgumentsDelta(msgspec.Struct, tag_field="type", tag="response.function_call_arguments.delta"):
    """What is new of a call's arguments."""

    sequence_number: int
    item_id: str
    output_index: int
    delta: str


class ArgumentsDone(msgspec.Struct, tag_field="type", tag="response.function_call_arguments.done"):
    """The whole arguments."""

    sequence_number: int
    item_id: str
    output_index: int
    name: str
    arguments: str


class OutputItemDone(msgspec.Struct, tag_field="type", tag="response.output_item.done"):
    """The whole item."""

    sequence_number: int
    output_index: int
    item: OutputItem


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
