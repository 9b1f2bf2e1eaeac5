"""What the frontend knows of the model it serves: tokenizer, shape, chat template and sampling defaults. No weights, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.config import ModelOptions
from octavo.errors import ConfigError, InvalidRequestError, ModelLoadError
from octavo.frontend.chat_template import ChatTemplate, load_chat_template
from octavo.frontend.reasoning import ReasoningTags, find_reasoning_tags
from octavo.frontend.tokenizer import Tokenizer, load_tokenizer
from octavo.frontend.tool_calls.formats import ToolFormat, find_tool_format
from octavo.models.config import ModelConfig
from octavo.models.hf_config import read_hf_generation_config
from octavo.models.hub import ModelFiles
from octavo.models.loader import read_generation_config, read_model_config
from octavo.sampling_params import SamplingParams

_DEFAULT_FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
"""Fields of a generation config that set sampling defaults (those vLLM reads), and their names in ``SamplingParams``."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What is served, as far as the frontend needs to know.

    Attributes:
        name: what the model is called where the user gave no other name.
        max_model_len: most tokens of prompt and output together.
        chat_template: None for a model that is not tuned for chat.
        tool_format: how the model writes calls of tools.
        reasoning: what its reasoning stands between; None for a model that does not reason.
        sampling_defaults: values of ``SamplingParams`` fields for requests that leave them out.
        longest_token_chars: characters of the vocabulary's longest token.
    """

    name: str
    config: ModelConfig
    tokenizer: Tokenizer
    max_model_len: int
    chat_template: ChatTemplate | None
    tool_format: ToolFormat
    reasoning: ReasoningTags | None
    sampling_defaults: dict[str, Any]
    longest_token_chars: int


def load_served_model(options: ModelOptions, files: ModelFiles) -> ServedModel:
    """Read all of it from the checkpoint's small files.

    Raises:
        ConfigError: an option names a file that cannot be used.
        ModelLoadError: the checkpoint's config or tokenizer is missing or wrong.
    """
    config = read_model_config(files)
    tokenizer = load_tokenizer(files, options.tokenizer, options.revision)
    template = load_chat_template(files, tokenizer, options.chat_template)
    source = template.source_for_tools if template is not None else ""
    return ServedModel(
        name=files.name,
        config=config,
        tokenizer=tokenizer,
        max_model_len=options.max_model_len or config.max_position_embeddings,
        chat_template=template,
        tool_format=find_tool_format(source, tokenizer.has_token),
        reasoning=find_reasoning_tags(source, tokenizer.has_token),
        sampling_defaults=read_sampling_defaults(options.generation_config, files),
        longest_token_chars=max(map(len, tokenizer.backend.get_vocab()), default=1),
    )


def read_sampling_defaults(source: str, files: ModelFiles) -> dict[str, Any]:
    """Sampling defaults from a generation config.

    Args:
        source: ``auto`` for the model's own, ``vllm`` for none, else a directory with a ``generation_config.json``.
        files: the model.

    Returns:
        Values by ``SamplingParams`` field, only those the config sets.

    Raises:
        ConfigError: ``source`` is no such directory.
        ModelLoadError: the file is broken or holds a value out of range.
    """
    if source == "vllm":
        return {}
    config = read_generation_config(files) if source == "auto" else _read_directory(Path(source).expanduser())
    defaults = {field: config[name] for name, field in _DEFAULT_FIELDS.items() if name in config}
    try:
        SamplingParams(**defaults)
    except InvalidRequestError as error:
        raise ModelLoadError(
            f"The generation config sets a bad default: {error} Use --generation-config vllm to do without its defaults."
        ) from error
    return defaults


def _read_directory(path: Path) -> dict[str, Any]:
    if not (path / "generation_config.json").is_file():
        raise ConfigError(f"generation_config={str(path)!r}: must be auto, vllm or a directory that holds a generation_config.json.")
    return read_hf_generation_config(path)
