"""The request bodies of every dialect, as clients send them: types only, strictly checked.

Ranges are checked once, by ``SamplingParams``; fields that Octavo knows and cannot honour are in ``refused_fields``.
A null means the same as an absent field, as OpenAI's clients have it.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Prompts = str | list[str] | list[int] | list[list[int]]


class Body(BaseModel):
    """Base of all bodies. Unknown fields are kept, so that ``refused_fields.check`` can name them and their nearest known one."""

    model_config = ConfigDict(
        strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=(), json_schema_extra={"additionalProperties": False}
    )

    model: str | None = Field(None, description="A served name; the first one when omitted.")


class StreamOptions(BaseModel):
    """What a stream carries besides the text."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = Field(None, description="End the stream with a chunk that holds the usage.")
    continuous_usage_stats: bool | None = Field(None, description="Put the usage so far into every chunk.")


class SamplingFields(Body):
    """The fields of ``SamplingParams`` that every dialect takes, and those that place a request in the engine."""

    n: int | None = Field(None, description="Answers to return (1).")
    best_of: int | None = Field(None, description="Answers to generate, of which the n most likely are returned.")
    presence_penalty: float | None = Field(None, description="In [-2, 2] (0).")
    frequency_penalty: float | None = Field(None, description="In [-2, 2] (0).")
    repetition_penalty: float | None = Field(None, description="Above 0 (1).")
    temperature: float | None = Field(None, description="0 is greedy (1, or the model's own default).")
    top_p: float | None = Field(None, description="In (0, 1] (1, or the model's own default).")
    top_k: int | None = Field(None, description="0 or -1 is off (0, or the model's own default).")
    min_p: float | None = Field(None, description="In [0, 1] (0).")
    seed: int | None = Field(None, description="Makes the request's random numbers its own.")
    stop: str | list[str] | None = Field(None, description="Strings that end an answer.")
    stop_token_ids: list[int] | None = Field(None, description="Token ids that end an answer.")
    bad_words: list[str] | None = Field(None, description="Strings that are never generated.")
    ignore_eos: bool | None = Field(None, description="Go on past the model's end of sequence.")
    max_tokens: int | None = Field(None, description="Most tokens to generate.")
    min_tokens: int | None = Field(None, description="Fewest tokens before an end is allowed.")
    prompt_logprobs: int | None = Field(None, description="Log probabilities of that many tokens at each position of the prompt.")
    skip_special_tokens: bool | None = Field(None, description="Leave special tokens out of the text (true).")
    spaces_between_special_tokens: bool | None = Field(None, description="Separate special tokens by spaces (true).")
    include_stop_str_in_output: bool | None = Field(None, description="Keep the stop string at the end of the text (false).")
    logit_bias: dict[int, float] | None = Field(None, description="Token id to a value added to its logit, in [-100, 100].")
    allowed_token_ids: list[int] | None = Field(None, description="The only token ids that may be generated.")
    truncate_prompt_tokens: int | None = Field(None, description="Keep that many last tokens of the prompt; -1: what the context allows.")

    stream: bool | None = Field(None, description="Send the answer while it is made.")
    stream_options: StreamOptions | None = None
    priority: int | None = Field(None, description="Smaller runs earlier, under --scheduling-policy priority.")
    request_id: str | None = Field(None, description="Part of the answer's id and of log lines.")
    cache_salt: str | None = Field(None, description="Requests share cached prompts only with the same salt.")
    return_token_ids: bool | None = Field(None, description="Return the token ids of prompt and answer too.")


class CompletionRequest(SamplingFields):
    """``POST /v1/completions``: continues text, verbatim."""

    prompt: Prompts = Field(description="A string, a list of strings, token ids, or a list of those.")
    echo: bool | None = Field(None, description="Put the prompt before the text.")
    logprobs: int | None = Field(None, description="Log probabilities of that many tokens at each position.")
    add_special_tokens: bool | None = Field(None, description="Add the tokens a prompt starts with, such as BOS (true).")


class TextPart(BaseModel):
    """One part of a message's content; only text is served."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a chat. ``developer`` is OpenAI's newer name of ``system`` and means the same."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra={"additionalProperties": False})

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates read it: the content is one string."""
        content = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content or [])
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": content}
        if self.name is not None:
            message["name"] = self.name
        if self.reasoning_content is not None:
            message["reasoning_content"] = self.reasoning_content
        return message


class ChatFields(Body):
    """What the chat template is given."""

    messages: list[Message] = Field(min_length=1)
    add_generation_prompt: bool | None = Field(None, description="End the prompt where the assistant's answer starts (true).")
    continue_final_message: bool | None = Field(None, description="Go on with the last message rather than answer it (false).")
    add_special_tokens: bool | None = Field(None, description="Add special tokens besides those of the chat template (false).")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Further variables of the chat template.")


class ChatCompletionRequest(ChatFields, SamplingFields):
    """``POST /v1/chat/completions``: answers a chat, through the model's chat template."""

    max_completion_tokens: int | None = Field(None, description="Most tokens to generate (what the context leaves).")
    logprobs: bool | None = Field(None, description="Return log probabilities of the answer's tokens.")
    top_logprobs: int | None = Field(None, description="That many most likely tokens at each position; needs logprobs.")


class GenerateRequest(SamplingFields):
    """``POST /generate``: Octavo's own short form. A plain string is put through the model's chat template, where it has one."""

    prompt: str | list[int] = Field(description="A string or token ids.")
    raw: bool | None = Field(None, description="Use the string verbatim, without the chat template (false).")
    logprobs: int | None = Field(None, description="Log probabilities of that many tokens at each position.")


class TokenizeTextRequest(Body):
    """``POST /tokenize`` with a text."""

    prompt: str
    add_special_tokens: bool | None = Field(None, description="Add the tokens a prompt starts with, such as BOS (true).")
    return_token_strs: bool | None = Field(None, description="Return the tokens as strings too.")


class TokenizeChatRequest(ChatFields):
    """``POST /tokenize`` with a chat."""

    return_token_strs: bool | None = Field(None, description="Return the tokens as strings too.")


class DetokenizeRequest(Body):
    """``POST /detokenize``."""

    tokens: list[int]
