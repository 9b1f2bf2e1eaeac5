"""Run a model step by step over a poisoned page pool, the way the runner does, for tests."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import torch

from octavo.models.config import ModelConfig
from octavo.models.decoder import Model
from octavo.models.hub import ModelFiles
from octavo.models.loader import open_weights, read_model_config
from octavo.models.registry import build_model
from octavo.ops.base import AttentionBatch, KVShape, Ops, StepLimits
from octavo.ops.select import select_ops
from octavo.ops.workspace import CPU_POOL_SPARE_BYTES


def load(directory: Path, dtype: torch.dtype, max_model_len: int, ops: Ops | None = None) -> tuple[Model, ModelConfig]:
    """The model in a checkpoint directory, by ``ops`` or the kernels that a server would choose on the CPU."""
    files = ModelFiles(name=directory.name, kind="hf", path=directory)
    config = read_model_config(files)
    ops = ops or select_ops(torch.device("cpu"), dtype)
    return build_model(config, open_weights(files, config, "auto"), ops, max_model_len), config


def attention_batch(tables: list[list[int]], cached: list[int], counts: list[int], block_size: int) -> AttentionBatch:
    """The geometry of a step in which sequence ``s`` has ``cached[s]`` tokens in the pool and computes ``counts[s]`` more."""
    positions = torch.cat([torch.arange(begin, begin + count) for begin, count in zip(cached, counts, strict=True)])
    owners = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    widest = max(len(table) for table in tables)
    padded = torch.tensor([table + [0] * (widest - len(table)) for table in tables], dtype=torch.int32)
    contexts = [begin + count for begin, count in zip(cached, counts, strict=True)]
    return AttentionBatch(
        positions=positions,
        slots=padded[owners, positions // block_size].long() * block_size + positions % block_size,
        query_starts=torch.tensor([0, *counts]).cumsum(0).int(),
        context_lens=torch.tensor(contexts, dtype=torch.int32),
        block_tables=padded,
        query_lens=counts,
        context_lens_host=contexts,
        block_size=block_size,
    )


def on_device(batch: AttentionBatch, device: torch.device) -> AttentionBatch:
    """A step with its tensors on a device."""
    tensors = ("positions", "slots", "query_starts", "context_lens", "block_tables")
    return replace(batch, plans={}, **{name: getattr(batch, name).to(device) for name in tensors})


class PagedModel:
    """A model over a pool whose every value is NaN until it is written; sequences get scattered blocks.

    Args:
        dtype: of the cache.
        num_blocks: blocks of the pool.
    """

    def __init__(self, model: Model, config: ModelConfig, dtype: torch.dtype, block_size: int = 16, num_blocks: int = 64) -> None:
        self.model = model
        self.block_size = block_size
        block_values = config.kv_values_per_token * block_size
        size = num_blocks * block_values
        self.device = model.ops.device
        values = torch.full((size + CPU_POOL_SPARE_BYTES,), torch.nan, dtype=dtype, device=self.device)[:size]
        shape = KVShape(config.num_layers, config.num_kv_heads, config.head_dim, block_size, str(dtype).removeprefix("torch."))
        self.pool = values.view(torch.uint8).view(num_blocks, -1)
        limits = StepLimits(num_blocks, num_blocks)
        self.forward = model.ops.prepare_forward(model.forward, model.ops.kv_layers(self.pool, shape), limits)
        self.free = list(range(num_blocks))
        random.Random(5).shuffle(self.free)
        self.tables: dict[int, list[int]] = {}
        self.cached: dict[int, int] = {}

    @torch.inference_mode()
    def step(self, tokens: dict[int, list[int]]) -> dict[int, torch.Tensor]:
        """Compute the next tokens of some sequences in one step; float32 logits [tokens, V] of each."""
        for sequence, new in tokens.items():
            table = self.tables.setdefault(sequence, [])
            needed = -(-(self.cached.setdefault(sequence, 0) + len(new)) // self.block_size)
            table += [self.free.pop() for _ in range(needed - len(table))]
        names = list(tokens)
        counts = [len(tokens[name]) for name in names]
        tables, cached = [self.tables[name] for name in names], [self.cached[name] for name in names]
        batch = on_device(attention_batch(tables, cached, counts, self.block_size), self.device)
        ids = torch.tensor([token for name in names for token in tokens[name]], device=self.device)
        logits = self.model.logits(self.forward(ids, batch))
        assert logits is not None
        for name in names:
            self.cached[name] += len(tokens[name])
        return dict(zip(names, logits.split(counts), strict=True))
