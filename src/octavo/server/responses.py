"""The answers of every dialect, as structs that are written straight to JSON. ``UNSET`` fields are left out."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON has no number for."""


class PromptTokensDetails(msgspec.Struct):
    """``cached_tokens``: prompt tokens found in the prefix cache."""

    cached_tokens: int


class Usage(msgspec.Struct):
    """Tokens the model read and made."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | UnsetType = UNSET


class Explain(msgspec.Struct):
    """Where a request's time went, in milliseconds; null where it did not get that far."""

    queue_ms: float | None
    prefill_ms: float | None
    decode_ms: float | None
    ttft_ms: float | None
    cached_tokens: int
    preemptions: int


class LogprobEntry(msgspec.Struct):
    """One candidate token at one position, keyed by its id in a dictionary."""

    logprob: float
    rank: int
    decoded_token: str


IdLogprobs = dict[int, LogprobEntry]


# ---- completions -----------------------------------------------------------------------------------------------------


class CompletionLogprobs(msgspec.Struct):
    """Log probabilities in OpenAI's legacy shape; all lists are equally long. ``text_offset`` counts characters."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(msgspec.Struct):
    """One text, or (in a stream) what is new of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: list[IdLogprobs | None] | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class CompletionResponse(msgspec.Struct):
    """The answer of ``/v1/completions``, and each chunk of its stream."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    object: str = "text_completion"
    usage: Usage | UnsetType = UNSET
    explain: Explain | UnsetType = UNSET


# ---- chat ------------------------------------------------------------------------------------------------------------


class TopLogprob(msgspec.Struct):
    """One candidate; ``bytes`` are what it adds to a text in UTF-8, which may be part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct):
    """The token at one position, and the likeliest ones there."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    """One entry a token of the content."""

    content: list[TokenLogprob]


class ToolCallFunction(msgspec.Struct):
    """What a call calls; in a stream, what is new of it. ``arguments`` is JSON text."""

    name: str | UnsetType = UNSET
    arguments: str = ""


class ToolCall(msgspec.Struct):
    """One call of a tool."""

    id: str
    function: ToolCallFunction
    type: str = "function"


class ToolCallDelta(msgspec.Struct):
    """What is new of one call: its id, type and name at its beginning, then its arguments piece by piece."""

    index: int
    function: ToolCallFunction
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class ChatMessage(msgspec.Struct):
    """The assistant's message. ``content`` is null where it calls a tool, or only reasons, and says nothing."""

    content: str | None
    role: str = "assistant"
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletionResponse(msgspec.Struct):
    """The answer of ``/v1/chat/completions``."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: str = "chat.completion"
    prompt_logprobs: list[IdLogprobs | None] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    explain: Explain | UnsetType = UNSET


class ChatDelta(msgspec.Struct):
    """What is new of a message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct):
    """What is new of one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletionChunk(msgspec.Struct):
    """Each chunk of a chat's stream."""

    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    object: str = "chat.completion.chunk"
    usage: Usage | UnsetType = UNSET
    prompt_logprobs: list[IdLogprobs | None] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    explain: Explain | UnsetType = UNSET


# ---- /generate -------------------------------------------------------------------------------------------------------


class GenerateResponse(msgspec.Struct):
    """The answer of ``/generate``: one text for each of ``n``."""

    text: list[str]
    usage: Usage
    model: str
    logprobs: list[list[IdLogprobs]] | UnsetType = UNSET
    prompt_logprobs: list[IdLogprobs | None] | UnsetType = UNSET
    token_ids: list[list[int]] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    explain: Explain | UnsetType = UNSET


class GenerateChunk(msgspec.Struct):
    """One line of ``/generate``'s stream: what is new of each text; the last line has the usage and why each ended."""

    text: list[str]
    model: str
    usage: Usage | UnsetType = UNSET
    finish_reason: list[str | None] | UnsetType = UNSET
    logprobs: list[list[IdLogprobs]] | UnsetType = UNSET
    prompt_logprobs: list[IdLogprobs | None] | UnsetType = UNSET
    token_ids: list[list[int]] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    explain: Explain | UnsetType = UNSET


# ---- the rest --------------------------------------------------------------------------------------------------------


class ModelCard(msgspec.Struct):
    """One served name; ``root`` is the model behind it, ``max_model_len`` its context in tokens."""

    id: str
    created: int
    root: str
    max_model_len: int
    object: str = "model"
    owned_by: str = "octavo"
    parent: str | None = None


class ModelList(msgspec.Struct):
    """The answer of ``/v1/models``."""

    data: list[ModelCard]
    object: str = "list"


class TokenizeResponse(msgspec.Struct):
    """The answer of ``/tokenize``."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeResponse(msgspec.Struct):
    """The answer of ``/detokenize``."""

    prompt: str


class Health(msgspec.Struct):
    """The answer of ``/health``. ``progress`` is that of the phase, in [0, 1]; -1 where unknown."""

    status: str
    phase: str
    progress: float


class Load(msgspec.Struct):
    """The answer of ``/load``: requests that have not ended."""

    server_load: int


class Version(msgspec.Struct):
    """The answer of ``/version``."""

    version: str
