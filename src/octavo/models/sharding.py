"""What each rank of a parallel layout has of a model: some layers, and of each some heads, some columns, some of the vocabulary.

A rank's part is a smaller model of the same family (``Shard.local``), with the same tensor names (``ShardedSource`` cuts them out of the
checkpoint): layers are built as for one rank and know nothing of the others, but for the sums that ``Ops.all_reduce`` makes of products
whose columns are shared out.

Shares need not be equal. A key/value head goes with its query heads, since a query needs its keys where it is: ranks share the key/value
heads out, and where there are more ranks than such heads, ranks share a head's queries and each keep a copy of its keys and values.

Imports no torch: the memory plan asks what a rank holds.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from octavo.errors import ConfigError
from octavo.models.config import ModelConfig
from octavo.models.expected_tensors import expected_tensors
from octavo.quantization.gguf import BLOCKS

_VOCABULARY_UNIT = 16
_COLUMN_UNIT = 32
"""Shares of the vocabulary and of the feed-forward network are whole multiples where there are enough: kernels fill up what is not, and
values that are quantised at load share a scale."""

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's part of a model.

    Attributes:
        stage, num_stages: its place in the pipeline. rank, size: its place among the ranks that share its layers.
        layers: of the model, those of the stage.
        heads, kv_heads, columns: its query heads, key/value heads and columns of the feed-forward network.
        vocabularies: for each rank of its group, the token ids whose rows it holds.
    """

    stage: int
    num_stages: int
    rank: int
    size: int
    layers: range
    heads: range
    kv_heads: range
    columns: range
    vocabularies: tuple[range, ...]

    @property
    def is_first(self) -> bool:
        """Whether it looks tokens up."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether it scores the vocabulary."""
        return self.stage == self.num_stages - 1

    @property
    def samples(self) -> bool:
        """Whether it samples: of those that score the vocabulary, the one that all scores are gathered on."""
        return self.is_last and self.rank == 0

    @property
    def vocabulary(self) -> range:
        """Its own token ids."""
        return self.vocabularies[self.rank]

    def local(self, config: ModelConfig) -> ModelConfig:
        """The shape of the rank's part."""
        return dataclasses.replace(
            config,
            num_layers=len(self.layers),
            windows=config.windows[self.layers.start : self.layers.stop],
            num_heads=len(self.heads),
            num_kv_heads=len(self.kv_heads),
            intermediate_size=len(self.columns),
            vocab_size=len(self.vocabulary),
        )

    def tensors(self, config: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors it holds, under its own layers' numbers."""
        shapes = expected_tensors(self.local(config))
        if not self.is_last:
            shapes.pop("lm_head.weight", None)
            shapes.pop("model.norm.weight")
        if not (self.is_first or (self.is_last and config.tie_word_embeddings)):
            shapes.pop("model.embed_tokens.weight")
        return shapes

    def stored_name(self, name: str) -> str:
        """A tensor's name in the checkpoint."""
        return _LAYER.sub(lambda match: f"model.layers.{int(match[1]) + self.layers.start}.", name)


def share_out(config: ModelConfig, tensor: int, pipeline: int, formats: Mapping[str, str] | None = None) -> list[Shard]:
    """Every rank's part: those that share the first stage's layers first.

    Args:
        tensor: ranks that share each layer; pipeline: stages.
        formats: how tensors are stored that are to stay in their blocks, by Hugging Face name.

    Raises:
        ConfigError: the model has too few heads, columns or layers for so many ranks, or a block of stored values would be cut.
    """
    if pipeline > config.num_layers:
        raise ConfigError(f"pipeline_parallel_size={pipeline} is more than the model's {config.num_layers} layers.")
    heads = _share_heads(config, tensor)
    unit = _column_unit(config, tensor, formats or {})
    if config.intermediate_size < tensor or config.vocab_size < tensor:
        raise ConfigError(f"tensor_parallel_size={tensor} is more than the model's {config.intermediate_size} columns.")
    columns = _split(config.intermediate_size, tensor, unit)
    vocabularies = tuple(_split(config.vocab_size, tensor, _VOCABULARY_UNIT if config.vocab_size >= _VOCABULARY_UNIT * tensor else 1))
    _check_blocks(config, tensor, heads, formats or {})
    layers = _share_layers(config, pipeline)
    return [
        Shard(stage, pipeline, rank, tensor, layers[stage], *heads[rank], columns[rank], vocabularies)
        for stage in range(pipeline)
        for rank in range(tensor)
    ]


def _split(count: int, parts: int, unit: int = 1) -> list[range]:
    """``count`` things in runs of whole ``unit``s (the last may be cut), as equal as can be, smaller ones first."""
    units = -(-count // unit)
    edges = [min(units * part // parts * unit, count) for part in range(parts + 1)]
    return [range(begin, end) for begin, end in pairwise(edges)]


def _share_heads(config: ModelConfig, tensor: int) -> list[tuple[range, range]]:
    """Each rank's query heads and key/value heads."""
    group = config.num_heads // config.num_kv_heads
    if tensor <= config.num_kv_heads:
        shares = _split(config.num_kv_heads, tensor)
        return [(range(kv.start * group, kv.stop * group), kv) for kv in shares]
    found = []
    for kv, ranks in enumerate(_split(tensor, config.num_kv_heads)):
        if len(ranks) > group:
            raise ConfigError(
                f"tensor_parallel_size={tensor}: the model has {config.num_heads} query heads over {config.num_kv_heads} key/value heads, "
                f"and {len(ranks)} ranks cannot share {group} of them."
            )
        found += [(range(kv * group + part.start, kv * group + part.stop), range(kv, kv + 1)) for part in _split(group, len(ranks))]
    return found


def _column_unit(config: ModelConfig, tensor: int, formats: Mapping[str, str]) -> int:
    """Columns of the feed-forward network that stay together."""
    stored = {BLOCKS[storage][0] for name, storage in formats.items() if name.endswith("mlp.down_proj.weight")}
    block = math.lcm(*stored) if stored else 1
    wanted = math.lcm(block, _COLUMN_UNIT)
    if config.intermediate_size >= wanted * tensor:
        return wanted
    if tensor > 1 and config.intermediate_size < block * tensor:
        raise ConfigError(
            f"tensor_parallel_size={tensor}: the model's {config.intermediate_size} feed-forward columns are stored in blocks of {block}, "
            f"which {tensor} ranks cannot share; use fewer ranks, or --quantization int8, int4 or none, which repack them."
        )
    return block


def _check_blocks(config: ModelConfig, tensor: int, heads: Sequence[tuple[range, range]], formats: Mapping[str, str]) -> None:
    """No block of the output projection's columns may lie on two ranks."""
    for name, storage in formats.items():
        block = BLOCKS[storage][0]
        if not name.endswith("self_attn.o_proj.weight"):
            continue
        for share, _ in heads[1:]:
            if share.start * config.head_dim % block:
                raise ConfigError(
                    f"tensor_parallel_size={tensor}: {name} is stored as {storage}, whose blocks of {block} columns would be cut at head "
                    f"{share.start} of {config.head_dim} columns; use other ranks, or --quantization int8, int4 or none, which repack them."
                )


def _share_layers(config: ModelConfig, pipeline: int) -> list[range]:
    """The stages' layers, so that the largest stage has the fewest parameters; the first stage has the token table, the last the head.

    Cuts are found from the back: ``best[s][n]`` is the least size of the largest of ``s`` stages that share the first ``n`` layers.
    """
    sizes = {name: math.prod(shape) for name, shape in expected_tensors(config).items()}
    layer = sum(size for name, size in sizes.items() if name.startswith("model.layers.0."))
    table = sizes["model.embed_tokens.weight"]
    if pipeline == 1:
        return [range(config.num_layers)]

    def size(stage: int, count: int) -> int:
        return count * layer + (table if stage in (0, pipeline - 1) else 0)

    total = config.num_layers
    best: dict[int, tuple[int, tuple[int, ...]]] = {count: (size(0, count), (count,)) for count in range(1, total + 1)}
    for stage in range(1, pipeline):
        grown: dict[int, tuple[int, tuple[int, ...]]] = {}
        for count in range(stage + 1, total + 1):
            choices = ((max(best[count - own][0], size(stage, own)), (*best[count - own][1], own)) for own in range(1, count - stage + 1))
            grown[count] = min(choices)
        best = grown
    edges = [0]
    for own in best[total][1]:
        edges.append(edges[-1] + own)
    return [range(begin, end) for begin, end in pairwise(edges)]
