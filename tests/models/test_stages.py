"""A pipeline's stages, one after the other, compute what the whole model computes, bit for bit on the same kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from family_checkpoints import save_checkpoint
from paged_steps import PagedModel

from octavo.models.hub import ModelFiles
from octavo.models.loader import open_weights, read_model_config
from octavo.models.registry import build_model
from octavo.models.sharding import share_out
from octavo.ops.base import AttentionBatch, KVShape, StepLimits
from octavo.ops.cpu.backend import CpuOps

TOKENS = list(range(3, 40))


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gemma2", "gemma3", "phi3-short"])
def test_stages_compute_what_the_whole_model_does(family: str, tmp_path: Path) -> None:
    save_checkpoint(family, tmp_path)
    files = ModelFiles("tiny", "hf", tmp_path)
    config = read_model_config(files)
    ops = CpuOps(torch.float32, 1)
    whole = build_model(config, open_weights(files, config, "auto"), ops, 64)
    expected = PagedModel(whole, config, torch.float32).step({0: TOKENS})[0]
    count, block_size = len(TOKENS), 16
    step = AttentionBatch(
        positions=torch.arange(count),
        slots=torch.arange(count),
        query_starts=torch.tensor([0, count], dtype=torch.int32),
        context_lens=torch.tensor([count], dtype=torch.int32),
        block_tables=torch.arange(3, dtype=torch.int32).unsqueeze(0),
        query_lens=[count],
        context_lens_host=[count],
        block_size=block_size,
    )
    rows = torch.tensor(TOKENS)
    shards = share_out(config, 1, 2)
    assert [layer for shard in shards for layer in shard.layers] == list(range(config.num_layers))
    for shard in shards:
        local = shard.local(config)
        model = build_model(local, open_weights(files, config, "auto", shard=shard), ops, 64, shard=shard)
        shape = KVShape(local.num_layers, local.num_kv_heads, local.head_dim, block_size, "float32")
        memory = torch.zeros(3 * local.kv_values_per_token * block_size * 4 + 64, dtype=torch.uint8)
        kv = ops.kv_layers(memory[:-64].view(3, -1), shape)
        width = None if shard.is_first else config.hidden_size
        rows = ops.prepare_forward(model.forward, kv, StepLimits(1, 3), width)(rows, step)
    logits = model.logits(rows)
    assert logits is not None
    assert torch.equal(logits, expected)
