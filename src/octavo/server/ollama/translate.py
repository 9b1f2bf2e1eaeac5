"""From Ollama's requests to chats."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from octavo.errors import InvalidRequestError
from octavo.server import refused_fields
from octavo.server.ollama.protocol import OPTIONS_NOT_YET, OllamaBody, OllamaChatRequest, OllamaGenerateRequest, OllamaMessage
from octavo.server.protocol import ChatCompletionRequest
from octavo.server.service import Service
from octavo.server.via_chat import chat_body

if TYPE_CHECKING:
    from octavo.frontend.served_model import ServedModel

_SAME = ("temperature", "top_k", "top_p", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty")
_LATEST = ":latest"

NAMES = {
    **{name: f"options.{name}" for name in _SAME},
    "repetition_penalty": "options.repeat_penalty",
    "max_tokens": "options.num_predict",
    "reasoning_effort": "think",
    "response_format": "format",
}
"""A chat's fields that have other names here."""


def served_name(name: str | None, service: Service) -> str | None:
    """A name without ``:latest``, which Ollama's clients add, unless it is served with it."""
    return name.removesuffix(_LATEST) if name is not None and name not in service.names else name


def check_options(body: OllamaBody) -> None:
    """Refuse the options that are unknown or cannot be honoured.

    Raises:
        InvalidRequestError: naming the option.
    """
    if body.options is not None:
        refused_fields.check_part(body.options, OPTIONS_NOT_YET, "options.")


def chat_of_prompt(body: OllamaGenerateRequest, model: ServedModel) -> tuple[ChatCompletionRequest, str | None]:
    """The chat that a prompt is put as, and the prompt itself where it is taken verbatim.

    Raises:
        InvalidRequestError: naming the field at fault.
    """
    prompt = body.prompt or ""
    if body.raw and body.system:
        raise InvalidRequestError("system goes through the chat template, which raw leaves out; put it into the prompt.", "system")
    messages = [{"role": "system", "content": body.system}] if body.system else []
    verbatim = bool(body.raw) or (model.chat_template is None and not body.system)
    fields = {**_fields(body, model), "add_special_tokens": verbatim}
    return chat_body([*messages, {"role": "user", "content": prompt}], fields), prompt if verbatim else None


def chat_of(body: OllamaChatRequest, model: ServedModel) -> ChatCompletionRequest:
    """The chat that a request asks for. An assistant's message at its end is continued, as Ollama has it.

    Raises:
        InvalidRequestError: naming the field at fault.
    """
    messages = [_message(message, index) for index, message in enumerate(body.messages or ())]
    continues = bool(messages) and messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()] or None
    return chat_body(messages, {**_fields(body, model), "continue_final_message": continues, "tools": tools})


def _message(message: OllamaMessage, index: int) -> dict[str, Any]:
    """A message of a chat: calls have ids there, and their arguments are text."""
    made: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    made |= {"reasoning_content": message.thinking} if message.thinking else {}
    made |= {"name": message.tool_name} if message.tool_name else {}
    made |= {"tool_call_id": message.tool_call_id} if message.tool_call_id else {}
    if message.tool_calls:
        made["tool_calls"] = [
            {
                "id": call.id or f"call_{index}_{number}",
                "type": "function",
                "function": {"name": call.function.name, "arguments": json.dumps(call.function.arguments or {}, ensure_ascii=False)},
            }
            for number, call in enumerate(message.tool_calls)
        ]
    return made


def _fields(body: OllamaBody, model: ServedModel) -> dict[str, Any]:
    fields: dict[str, Any] = {"response_format": _response_format(body), **_thinking(body, model)}
    options = body.options
    if options is None:
        return fields
    if options.num_ctx is not None and not 1 <= options.num_ctx <= model.max_model_len:
        raise InvalidRequestError(
            f"options.num_ctx must be in [1, {model.max_model_len}], this server's context (--max-model-len); got {options.num_ctx}.",
            "options.num_ctx",
        )
    most = options.num_predict
    fields |= {name: getattr(options, name) for name in _SAME}
    return fields | {"repetition_penalty": options.repeat_penalty, "max_tokens": None if most in (-1, -2) else most}


def _thinking(body: OllamaBody, model: ServedModel) -> dict[str, Any]:
    """What ``think`` comes to: thoughts are returned unless it is false, which also turns them off where the template can."""
    if body.think is None or body.think is True:
        if body.think and model.reasoning is None:
            raise InvalidRequestError("`think`: this model does not reason; leave it out.", "think")
        return {}
    if body.think is False:
        can = model.chat_template is not None and "enable_thinking" in model.chat_template.source
        return {"include_reasoning": False, "reasoning_effort": "none" if can else None}
    return {"reasoning_effort": body.think}


def _response_format(body: OllamaBody) -> dict[str, Any] | None:
    if not body.format:
        return None
    if body.format == "json":
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"schema": body.format}}
