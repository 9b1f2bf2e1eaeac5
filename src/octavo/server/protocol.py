"""The request bodies of every dialect, as clients send them: types only, strictly checked.

Ranges are checked once, by ``SamplingParams``; fields that Octavo knows and cannot honour are in ``refused_fields``.
A null means the same as an absent field, as OpenAI's clients have it.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from octavo.server.structured_fields import ResponseFormat, StructuredOutputsFields

Prompts = str | list[str] | list[int] | list[list[int]]


class Body(BaseModel):
    """Base of all bodies. Unknown fields are kept, so that ``refused_fields.check`` can name them and their nearest known one."""

    model_config = ConfigDict(
        strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=(), json_schema_extra={"additionalProperties": False}
    )

    model: str | None = Field(default=None, description="A served name; the first one when omitted.")


class StreamOptions(BaseModel):
    """What a stream carries besides the text."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = Field(default=None, description="End the stream with a chunk that holds the usage.")
    continuous_usage_stats: bool | None = Field(default=None, description="Put the usage so far into every chunk.")


class SamplingFields(Body):
    """The fields of ``SamplingParams`` that every dialect takes, and those that place a request in the engine."""

    n: int | None = Field(default=None, description="Answers to return (1).")
    best_of: int | None = Field(default=None, description="Answers to generate, of which the n most likely are returned.")
    presence_penalty: float | None = Field(default=None, description="In [-2, 2] (0).")
    frequency_penalty: float | None = Field(default=None, description="In [-2, 2] (0).")
    repetition_penalty: float | None = Field(default=None, description="Above 0 (1).")
    temperature: float | None = Field(default=None, description="0 is greedy (1, or the model's own default).")
    top_p: float | None = Field(default=None, description="In (0, 1] (1, or the model's own default).")
    top_k: int | None = Field(default=None, description="0 or -1 is off (0, or the model's own default).")
    min_p: float | None = Field(default=None, description="In [0, 1] (0).")
    seed: int | None = Field(default=None, description="Makes the request's random numbers its own.")
    stop: str | list[str] | None = Field(default=None, description="Strings that end an answer.")
    stop_token_ids: list[int] | None = Field(default=None, description="Token ids that end an answer.")
    bad_words: list[str] | None = Field(default=None, description="Strings that are never generated.")
    ignore_eos: bool | None = Field(default=None, description="Go on past the model's end of sequence.")
    max_tokens: int | None = Field(default=None, description="Most tokens to generate.")
    min_tokens: int | None = Field(default=None, description="Fewest tokens before an end is allowed.")
    prompt_logprobs: int | None = Field(default=None, description="Log probabilities of that many tokens at each position of the prompt.")
    skip_special_tokens: bool | None = Field(default=None, description="Leave special tokens out of the text (true).")
    spaces_between_special_tokens: bool | None = Field(default=None, description="Separate special tokens by spaces (true).")
    include_stop_str_in_output: bool | None = Field(default=None, description="Keep the stop string at the end of the text (false).")
    logit_bias: dict[int, float] | None = Field(default=None, description="Token id to a value added to its logit, in [-100, 100].")
    allowed_token_ids: list[int] | None = Field(default=None, description="The only token ids that may be generated.")
    truncate_prompt_tokens: int | None = Field(default=None, description="Keep only the prompt's last tokens; -1: what fits.")

    response_format: ResponseFormat | None = Field(default=None, description="The form of the answer, as OpenAI spells it.")
    structured_outputs: StructuredOutputsFields | None = Field(default=None, description="The form of the answer, as vLLM spells it.")
    guided_json: dict[str, Any] | str | None = Field(default=None, description="structured_outputs.json under its older name.")
    guided_regex: str | None = Field(default=None, description="structured_outputs.regex under its older name.")
    guided_choice: list[str] | None = Field(default=None, description="structured_outputs.choice under its older name.")
    guided_grammar: str | None = Field(default=None, description="structured_outputs.grammar under its older name.")

    stream: bool | None = Field(default=None, description="Send the answer while it is made.")
    stream_options: StreamOptions | None = None
    priority: int | None = Field(default=None, description="Smaller runs earlier, under --scheduling-policy priority.")
    request_id: str | None = Field(default=None, description="Part of the answer's id and of log lines.")
    cache_salt: str | None = Field(default=None, description="Requests share cached prompts only with the same salt.")
    return_token_ids: bool | None = Field(default=None, description="Return the token ids of prompt and answer too.")


class CompletionRequest(SamplingFields):
    """``POST /v1/completions``: continues text, verbatim."""

    prompt: Prompts = Field(description="A string, a list of strings, token ids, or a list of those.")
    echo: bool | None = Field(default=None, description="Put the prompt before the text.")
    logprobs: int | None = Field(default=None, description="Log probabilities of that many tokens at each position.")
    add_special_tokens: bool | None = Field(default=None, description="Add the tokens a prompt starts with, such as BOS (true).")


class TextPart(BaseModel):
    """One part of a message's content; only text is served."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a chat. Where a template does not know ``developer``, OpenAI's newer name of ``system``, it reads ``system``."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra={"additionalProperties": False})

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None

    def for_template(self) -> dict[str, Any]:
        """The message as ``ChatTemplate.render`` takes it."""
        return self.model_dump(include=set(Message.model_fields), exclude_none=True)


class TemplateFields(Body):
    """What the chat template is given besides the messages."""

    add_generation_prompt: bool | None = Field(default=None, description="End the prompt where the assistant's answer starts (true).")
    continue_final_message: bool | None = Field(default=None, description="Go on with the last message rather than answer it (false).")
    chat_template_kwargs: dict[str, Any] | None = Field(default=None, description="Further variables of the chat template.")


class ChatCompletionRequest(TemplateFields, SamplingFields):
    """``POST /v1/chat/completions``: answers a chat, through the model's chat template."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, description="Most tokens to generate (what the context leaves).")
    logprobs: bool | None = Field(default=None, description="Return log probabilities of the answer's tokens.")
    top_logprobs: int | None = Field(default=None, description="That many most likely tokens at each position; needs logprobs.")
    add_special_tokens: bool | None = Field(default=None, description="Add special tokens besides those of the chat template (false).")


class GenerateRequest(SamplingFields):
    """``POST /generate``: Octavo's own short form. A plain string is put through the model's chat template, where it has one."""

    prompt: str | list[int] = Field(description="A string or token ids.")
    raw: bool | None = Field(default=None, description="Use the string verbatim, without the chat template (false).")
    logprobs: int | None = Field(default=None, description="Log probabilities of that many tokens at each position.")


class TokenizeRequest(TemplateFields):
    """``POST /tokenize``: the token ids of either a text or a chat."""

    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)
    add_special_tokens: bool | None = Field(default=None, description="Add the tokens a prompt starts with (true; false for a chat).")
    return_token_strs: bool | None = Field(default=None, description="Return the tokens as strings too.")


class DetokenizeRequest(Body):
    """``POST /detokenize``."""

    tokens: list[int]
