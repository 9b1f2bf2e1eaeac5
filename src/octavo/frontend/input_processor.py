"""From what a client asked to what the engine gets: checks against the model, tokenisation, and what the frontend resolves.

Nothing here is silently changed: a prompt that does not fit is refused, and so is a ``max_tokens`` that the context cannot hold.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from octavo.config import EngineOptions
from octavo.engine.messages import AddRequest
from octavo.errors import InvalidRequestError
from octavo.frontend.form_check import FormChecker
from octavo.frontend.served_model import ServedModel
from octavo.sampling_params import SamplingParams
from octavo.vocabulary import Vocabulary

Prompt = str | list[int]
"""A prompt as the frontend takes it: text, or token ids."""

LONG_TEXT_CHARS = 16384
"""From this length on a caller with an event loop should tokenise in a thread (about a millisecond of work)."""

MAX_ID_CHARS = 512
"""Most characters of a request id or a cache salt."""
_PRIORITY_RANGE = (-(2**31), 2**31 - 1)
_SEED_BITS = 63


@dataclass(frozen=True, slots=True)
class Ask:
    """A request as it comes in.

    Attributes:
        request_id: names it on the wire; unique among live ones.
        params: as the client gave them.
        priority: smaller runs earlier; only 0 unless the scheduling policy is ``priority``.
        cache_salt: extra key of the prefix cache.
    """

    request_id: str
    prompt: Prompt
    params: SamplingParams
    priority: int = 0
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A checked, tokenised request.

    Attributes:
        prompt: the text the model sees; None where the client sent token ids.
        params: what the client asked; ``message.params`` is what the engine is told.
        message: what goes to the engine.
    """

    prompt: str | None
    params: SamplingParams
    message: AddRequest

    @property
    def prompt_token_ids(self) -> list[int]:
        return self.message.prompt_token_ids


def unwrap_prompt(prompt: Any) -> Prompt:
    """One prompt of the Python API, without its wrapping.

    Args:
        prompt: a string, a list of token ids, ``{"prompt": ...}`` or ``{"prompt_token_ids": ...}``.

    Raises:
        InvalidRequestError: it is none of these.
    """
    if isinstance(prompt, Mapping):
        keys = set(prompt)
        if keys == {"prompt"} and isinstance(prompt["prompt"], str):
            return prompt["prompt"]
        if keys == {"prompt_token_ids"}:
            prompt = prompt["prompt_token_ids"]
        else:
            raise InvalidRequestError(
                "A prompt dictionary holds either 'prompt' (a string) or 'prompt_token_ids' (a list of integers); "
                f"got {', '.join(sorted(map(str, keys))) or 'nothing'}.",
                "prompt",
            )
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list | tuple):
        return list(prompt)
    raise InvalidRequestError(f"A prompt is a string or a list of token ids; got {type(prompt).__name__}.", "prompt")


class InputProcessor:
    """Checks and tokenises requests for one model; safe to use from several threads.

    Args:
        model: what is served; its ``max_model_len`` is the limit that prompts are held to.
        options: the engine's options (the default seed, the scheduling policy).
    """

    def __init__(self, model: ServedModel, options: EngineOptions) -> None:
        self._model = model
        self._default_seed = options.model.seed
        self._forms = FormChecker(model.tokenizer, model.config)
        self._has_priorities = options.scheduler.scheduling_policy == "priority"

    def process(self, asks: Sequence[Ask], *, add_special_tokens: bool = True) -> list[PreparedRequest]:
        """Check requests and make them ready for the engine; their texts are tokenised together.

        Args:
            asks: the requests; their parameters are not changed.
            add_special_tokens: whether tokenising text adds those of the model (a chat template has added them already).

        Raises:
            InvalidRequestError: naming the field at fault of the first that is wrong.
        """
        for ask in asks:
            self._check(ask)
        texts = [ask.prompt for ask in asks if isinstance(ask.prompt, str)]
        encoded = iter(self._model.tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens) if texts else [])
        return [self._prepare(ask, next(encoded) if isinstance(ask.prompt, str) else ask.prompt) for ask in asks]

    def vocabulary(self) -> Vocabulary:
        """What the engine has to know before the first request with ``structured_outputs``; the first call takes some time."""
        return self._forms.vocabulary()

    def _check(self, ask: Ask) -> None:
        """All that can be known before tokenisation."""
        self._check_priority(ask.priority)
        check_text("cache_salt", ask.cache_salt, MAX_ID_CHARS)
        self._check_params(ask.params)
        if isinstance(ask.prompt, str):
            check_text("prompt", ask.prompt)
            if ask.params.truncate_prompt_tokens is None:
                self._check_text_length(ask.prompt)

    def _prepare(self, ask: Ask, given: list[int]) -> PreparedRequest:
        params = ask.params
        token_ids = self._truncate(given, params)
        self._check_token_ids(token_ids)
        max_tokens = self._resolve_max_tokens(len(token_ids), params)
        text = ask.prompt if isinstance(ask.prompt, str) else None
        if text is not None and len(token_ids) < len(given):
            text = self._model.tokenizer.decode(token_ids, skip_special_tokens=False)
        message = AddRequest(
            request_id=ask.request_id,
            prompt_token_ids=token_ids,
            params=self._wire_params(params, max_tokens),
            seed=self._seed(params),
            eos_token_ids=list(self._model.config.eos_token_ids),
            bad_word_ids=self._bad_word_ids(params),
            priority=ask.priority,
            cache_salt=ask.cache_salt,
            arrival_time=time.monotonic(),
        )
        return PreparedRequest(text, params, message)

    # ---- the prompt --------------------------------------------------------------------------------------------------

    def _check_text_length(self, text: str) -> None:
        """Refuse text that cannot fit even if every token were the vocabulary's longest, before megabytes are tokenised."""
        least = len(text) // self._model.longest_token_chars
        if least >= self._model.max_model_len:
            raise self._too_long(f"your prompt contains at least {least} input tokens")

    def _truncate(self, token_ids: list[int], params: SamplingParams) -> list[int]:
        keep = params.truncate_prompt_tokens
        if keep is None:
            return token_ids
        if keep == -1:
            keep = max(1, self._model.max_model_len - (params.max_tokens or 1))
        return token_ids[-keep:]

    def _check_token_ids(self, token_ids: list[int]) -> None:
        if not token_ids:
            raise InvalidRequestError("The prompt is empty; it must hold at least one token.", "prompt")
        self._check_vocabulary("prompt", token_ids)

    def _resolve_max_tokens(self, num_prompt_tokens: int, params: SamplingParams) -> int:
        left = self._model.max_model_len - num_prompt_tokens
        if left < 1:
            raise self._too_long(f"your prompt contains {num_prompt_tokens} input tokens")
        if params.max_tokens is None:
            if params.min_tokens > left:
                raise InvalidRequestError(
                    f"min_tokens ({params.min_tokens}) exceeds the {left} tokens that the context leaves after the prompt.", "min_tokens"
                )
            return left
        if params.max_tokens > left:
            raise self._too_long(
                f"you requested {params.max_tokens} output tokens and your prompt contains {num_prompt_tokens} input tokens, "
                f"for a total of {params.max_tokens + num_prompt_tokens} tokens",
                "max_tokens",
            )
        return params.max_tokens

    def _too_long(self, what: str, param: str = "prompt") -> InvalidRequestError:
        advice = "the length of the input prompt" + (" or the number of requested output tokens" if param == "max_tokens" else "")
        return InvalidRequestError(
            f"This model's maximum context length is {self._model.max_model_len} tokens. However, {what}. Please reduce {advice}.",
            param,
            "context_length_exceeded",
        )

    # ---- the parameters ----------------------------------------------------------------------------------------------

    def _check_priority(self, priority: int) -> None:
        low, high = _PRIORITY_RANGE
        if type(priority) is not int or not low <= priority <= high:
            raise InvalidRequestError(f"priority must be an integer in [{low}, {high}]; got {priority!r}.", "priority")
        if priority != 0 and not self._has_priorities:
            raise InvalidRequestError(
                f"priority={priority} cannot be honoured: start with --scheduling-policy priority, or leave it at 0.", "priority"
            )

    def _check_params(self, params: SamplingParams) -> None:
        vocab_size = self._model.config.vocab_size
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(params, name)
            if value is not None and value > vocab_size:
                raise InvalidRequestError(f"{name} must not exceed the vocabulary's {vocab_size} tokens; got {value}.", name)
        for name in ("stop", "bad_words"):
            for text in getattr(params, name):
                check_text(name, text)
        self._check_vocabulary("stop_token_ids", params.stop_token_ids)
        self._check_vocabulary("logit_bias", list(params.logit_bias))
        if params.allowed_token_ids is not None:
            self._check_vocabulary("allowed_token_ids", params.allowed_token_ids)

    def _check_vocabulary(self, name: str, token_ids: list[int]) -> None:
        """All are integers in ``[0, vocab_size)``. Two passes in C: prompts may hold a hundred thousand of them."""
        if not token_ids:
            return
        if set(map(type, token_ids)) != {int}:
            wrong = next(token for token in token_ids if type(token) is not int)
            raise InvalidRequestError(f"{name} must hold integer token ids; got {wrong!r}.", name)
        low, high = min(token_ids), max(token_ids)
        if low < 0 or high >= self._model.config.vocab_size:
            wrong = low if low < 0 else high
            raise InvalidRequestError(
                f"{name} holds token id {wrong}, which is out of the vocabulary; ids are in [0, {self._model.config.vocab_size - 1}].", name
            )

    def _bad_word_ids(self, params: SamplingParams) -> list[list[int]]:
        """Each bad word's tokens as it starts a text, and as it follows a space where those are other tokens."""
        found: list[list[int]] = []
        for word in params.bad_words:
            bare = word.lstrip()
            for text in (word, f" {bare}") if bare else (word,):
                token_ids = self._model.tokenizer.encode(text, add_special_tokens=False)
                if not token_ids:
                    raise InvalidRequestError(f"bad_words holds {word!r}, which the tokenizer drops; it cannot be forbidden.", "bad_words")
                # A list that ends with one already there forbids nothing more.
                if not any(token_ids[-len(known) :] == known for known in found):
                    found.append(token_ids)
        return found

    def _seed(self, params: SamplingParams) -> int:
        if params.seed is not None:
            return params.seed
        return self._default_seed if self._default_seed is not None else secrets.randbits(_SEED_BITS)

    def _wire_params(self, params: SamplingParams, max_tokens: int) -> SamplingParams:
        """What the engine is told: strings are the frontend's business, ``max_tokens`` and counts of logprobs are resolved."""
        changes: dict[str, Any] = {}
        if params.max_tokens != max_tokens:
            changes["max_tokens"] = max_tokens
        if params.stop:
            changes["stop"] = []
        if params.bad_words:
            changes["bad_words"] = []
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(params, name) == -1:
                changes[name] = self._model.config.vocab_size
        if params.structured_outputs is not None:
            changes["structured_outputs"] = self._forms.check(params.structured_outputs)
        if params.logprobs is None and params.num_sequences > params.n:
            changes["logprobs"] = 0  # the best are chosen by them
        return msgspec.structs.replace(params, **changes) if changes else params


def check_text(name: str, text: Any, most: int | None = None) -> None:
    """Refuse what is not text: other types, lone surrogates (JSON can smuggle them in, UTF-8 cannot carry them), undue length.

    Raises:
        InvalidRequestError: naming the field.
    """
    if not isinstance(text, str):
        raise InvalidRequestError(f"{name} must be a string; got {type(text).__name__}.", name)
    if most is not None and len(text) > most:
        raise InvalidRequestError(f"{name} may hold at most {most} characters; got {len(text)}.", name)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"{name} holds a lone surrogate at character {error.start}, which is no text.", name) from None
