"""From resolved files to a model's shape, its sampling defaults and its weights.

Imports no torch: the server process reads shapes and the memory plan formats without it. Weights import it when their values are read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from octavo.errors import ConfigError, ModelLoadError, UnsupportedModelError
from octavo.models.config import ModelConfig
from octavo.models.expected_tensors import expected_tensors
from octavo.models.gguf_config import read_gguf_config, read_gguf_generation_config
from octavo.models.hf_config import read_hf_config, read_hf_generation_config
from octavo.models.hub import ModelFiles
from octavo.models.sharded_source import ShardedSource
from octavo.models.sharding import Shard
from octavo.quantization.gguf import open_gguf

if TYPE_CHECKING:
    import torch

    from octavo.quantization.base import WeightSource

_LAYER_TENSOR = re.compile(r"model\.layers\.(\d{1,9})\.")
_DERIVED = (".inv_freq", ".masked_bias")
"""Constants that older checkpoints keep beside the weights they are no part of."""


def read_model_config(files: ModelFiles) -> ModelConfig:
    """The model's shape, from config.json or the GGUF file's metadata.

    Raises:
        ModelLoadError: a field is missing or senseless, naming file and field.
        UnsupportedModelError: the architecture or a variant of it is none that Octavo runs.
    """
    return read_gguf_config(open_gguf(files.path)) if files.kind == "gguf" else read_hf_config(files.path)


def read_generation_config(files: ModelFiles) -> dict[str, Any]:
    """The sampling defaults that come with a model.

    Returns:
        Those of temperature, top_p, top_k, min_p, repetition_penalty, max_new_tokens and eos_token_id (a list) that its files state.

    Raises:
        ModelLoadError: a value is senseless, naming file and field.
    """
    return read_gguf_generation_config(open_gguf(files.path)) if files.kind == "gguf" else read_hf_generation_config(files.path)


def open_weights(
    files: ModelFiles,
    config: ModelConfig,
    load_format: str,
    quantization: str = "auto",
    device: torch.device | None = None,
    shard: Shard | None = None,
) -> WeightSource:
    """The checkpoint's tensors, under Hugging Face names and in Hugging Face layout.

    Args:
        files: what ``hub.resolve`` found.
        config: what ``read_model_config`` made of it.
        load_format: auto, safetensors, gguf or dummy (random weights; only the shape is read).
        quantization: what layers make of matrices: auto, none, int8, int4 or fp8.
        device: where dummy weights are made; the CPU when None.
        shard: the part of the model that is wanted, under its own layers' numbers; all of it when None.

    Raises:
        ConfigError: ``load_format`` is not what the files are.
        ModelLoadError: a file is missing, cut short or lies, or a tensor is missing or has another shape than the configuration says.
        UnsupportedModelError: a tensor is stored in a way Octavo does not read, or the model would ignore it.
    """
    source = _open_source(files, config, load_format, device)
    source.quantization = quantization
    return source if shard is None else ShardedSource(source, config, shard)


def _open_source(files: ModelFiles, config: ModelConfig, load_format: str, device: torch.device | None) -> WeightSource:
    if load_format == "dummy":
        from octavo.models.dummy_source import DummySource

        return DummySource(config, device)
    stored = "gguf" if files.kind == "gguf" else "safetensors"
    if load_format not in ("auto", stored):
        raise ConfigError(f"load_format={load_format!r} does not fit {files.path}, which is read as {stored!r}.")
    source = _open(files, config)
    _check_tensors(source, config, files)
    return source


def stored_formats(files: ModelFiles, config: ModelConfig, load_format: str) -> dict[str, str]:
    """How the tensors of a checkpoint that may be quantised are stored, from its header alone.

    Args:
        files: what ``hub.resolve`` found.
        config: what ``read_model_config`` made of it.
        load_format: as ``open_weights`` takes it.

    Returns:
        by Hugging Face name the storage type (one of ``quantization.gguf.BLOCKS``); empty where every tensor is dense.

    Raises:
        ModelLoadError: the header lies.
        UnsupportedModelError: the model would ignore a tensor.
    """
    if files.kind != "gguf" or load_format == "dummy":
        return {}
    source = _open(files, config)
    return {name: source[name].format for name in source.names()}


def _open(files: ModelFiles, config: ModelConfig) -> WeightSource:
    if files.kind == "gguf":
        from octavo.models.gguf_source import GGUFSource

        return GGUFSource(open_gguf(files.path), config)
    from octavo.models.safetensors_source import SafetensorsSource

    return SafetensorsSource(files.path)


def _check_tensors(source: WeightSource, config: ModelConfig, files: ModelFiles) -> None:
    """Every tensor the model needs is there in its shape, and none of its layers has one that would be ignored."""
    expected = expected_tensors(config)
    for name, shape in expected.items():
        stored = source[name].shape
        if stored != shape:
            raise ModelLoadError(
                f"{files.path}: tensor {name!r} has shape {list(stored)}, but the model's configuration makes it {list(shape)}."
            )
    for name in source.names():
        layer = _LAYER_TENSOR.match(name)
        if layer and int(layer[1]) < config.num_layers and name not in expected and not name.endswith(_DERIVED):
            raise UnsupportedModelError(f"{files.path}: a {config.architecture} of this configuration has no use for tensor {name!r}.")
