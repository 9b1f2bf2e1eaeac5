"""From a model's configuration and weights to a model."""

from __future__ import annotations

from collections.abc import Callable

from octavo.errors import UnsupportedModelError
from octavo.models.config import ModelConfig
from octavo.models.decoder import Block, Model
from octavo.models.gemma import GemmaBlock
from octavo.models.llama import LlamaBlock, Phi3Block
from octavo.models.sharding import Shard
from octavo.ops.base import Ops
from octavo.quantization.base import WeightSource

BLOCKS: dict[str, type[Block]] = {
    "LlamaForCausalLM": LlamaBlock,
    "MistralForCausalLM": LlamaBlock,
    "Qwen2ForCausalLM": LlamaBlock,
    "Qwen3ForCausalLM": LlamaBlock,
    "Phi3ForCausalLM": Phi3Block,
    "Gemma2ForCausalLM": GemmaBlock,
    "Gemma3ForCausalLM": GemmaBlock,
}
"""The layer of each architecture."""


def build_model(
    config: ModelConfig,
    weights: WeightSource,
    ops: Ops,
    max_model_len: int,
    progress: Callable[[float], None] | None = None,
    shard: Shard | None = None,
) -> Model:
    """Build a model, which loads it: tensors are read one layer at a time and packed by the backend at once.

    Args:
        max_model_len: the longest context that will be asked for, in tokens; it fixes the rotary tables.
        progress: told the fraction loaded, in (0, 1].
        shard: the rank's part; ``config`` and ``weights`` are that part's then.

    Raises:
        UnsupportedModelError: an architecture or rotary scaling that Octavo does not run.
        ModelLoadError: a tensor is missing.
    """
    if config.architecture not in BLOCKS:
        raise UnsupportedModelError(f"Architecture {config.architecture} is not one of {', '.join(BLOCKS)}.")
    return Model(config, weights, ops, max_model_len, BLOCKS[config.architecture], progress or (lambda fraction: None), shard)
