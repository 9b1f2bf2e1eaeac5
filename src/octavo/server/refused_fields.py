"""Fields beyond the request models: those that only label a request, those that come in a later version, and unknown ones.

Nothing is accepted and ignored. A known field is let through only with a value that asks for what Octavo does anyway; the
rest are refused by name, unknown ones with the nearest field that exists.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from octavo.errors import InvalidRequestError

LABELS = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})
"""Fields that only label a request; any value is fine."""

NOT_YET: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "chat_template": (),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "kv_transfer_params": (),
    "logits_processors": ([],),
    "lora_request": (),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "prediction": (),
    "prompt_embeds": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "verbosity": ("medium",),
    "vllm_xargs": ({},),
    "web_search_options": (),
}
"""Fields Octavo knows and cannot honour, with the values that ask for nothing; null always does."""

MESSAGE_NOT_YET: Mapping[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
}
"""The same for fields of a message; OpenAI's clients send back what they were given, empty lists and nulls included."""

NEVER = {"chat_template": "A chat template is never taken from a request; the server's --chat-template sets it."}
"""Fields that no later version will honour, and why."""


def check(body: BaseModel) -> None:
    """Refuse the fields of a body (and of its messages) that are unknown or cannot be honoured.

    A body of another API brings its own table of them, as ``not_yet``.

    Raises:
        InvalidRequestError: naming the field.
    """
    check_part(body, getattr(body, "not_yet", NOT_YET), "")
    for index, message in enumerate(getattr(body, "messages", None) or ()):
        check_part(message, getattr(body, "message_not_yet", MESSAGE_NOT_YET), f"messages[{index}].")


def check_part(part: BaseModel, not_yet: Mapping[str, tuple[Any, ...]], prefix: str) -> None:
    """Refuse the fields of a part of a body that are unknown or cannot be honoured.

    Args:
        part: a model that keeps unknown fields.
        not_yet: the known ones that cannot be honoured, with the values that ask for nothing.
        prefix: of the part's fields in the body, such as ``options.``.

    Raises:
        InvalidRequestError: naming the field.
    """
    for name, value in (part.__pydantic_extra__ or {}).items():
        if not prefix and name in LABELS:
            continue
        if name not in not_yet:
            raise _unknown(name, [*type(part).model_fields, *not_yet], prefix)
        if value is None or any(type(value) is type(harmless) and value == harmless for harmless in not_yet[name]):
            continue
        raise InvalidRequestError(NEVER.get(name) or _refusal(prefix + name, not_yet[name]), prefix + name, "unsupported_field")


def _refusal(field: str, harmless: tuple[Any, ...]) -> str:
    allowed = f" (only {' or '.join(repr(value) for value in harmless)} is accepted)" if harmless else ""
    return f"`{field}` is not available yet in this version of Octavo{allowed}; leave it out."


def _unknown(name: str, known: list[str], prefix: str) -> InvalidRequestError:
    near = difflib.get_close_matches(name, known, 1)
    hint = f" Did you mean `{prefix}{near[0]}`?" if near else ""
    return InvalidRequestError(f"Unknown field `{prefix}{name}`.{hint}", prefix + name, "unknown_field")
