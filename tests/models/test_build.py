"""Building a model: progress, refusals, the pool's layout, and a 16-bit model beside its float32 self."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from family_checkpoints import LENGTH, save_checkpoint
from paged_steps import PagedModel, load

from octavo.errors import UnsupportedModelError
from octavo.layers.rotary import rotary_table
from octavo.models.config import SUPPORTED_ARCHITECTURES, ModelConfig, RotaryConfig
from octavo.models.hub import ModelFiles
from octavo.models.loader import open_weights, read_model_config
from octavo.models.registry import BLOCKS, build_model
from octavo.ops.base import KVShape, Ops
from octavo.ops.cpu.backend import CpuOps
from octavo.ops.reference import ReferenceOps
from octavo.ops.reference_attention import TorchKVLayer
from octavo.ops.select import select_ops
from octavo.quantization.base import WeightSource

OPS = select_ops(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    save_checkpoint("llama", path)
    return path


def opened(directory: Path) -> tuple[ModelConfig, WeightSource]:
    files = ModelFiles(name="tiny", kind="hf", path=directory)
    config = read_model_config(files)
    return config, open_weights(files, config, "auto")


def test_every_supported_architecture_has_a_layer() -> None:
    assert set(BLOCKS) == set(SUPPORTED_ARCHITECTURES)


def test_progress_rises_to_one(directory: Path) -> None:
    fractions: list[float] = []
    build_model(*opened(directory), OPS, LENGTH, fractions.append)
    assert fractions == sorted(fractions)
    assert len(fractions) == 3
    assert fractions[-1] == 1.0


def test_an_unknown_architecture_is_refused(directory: Path) -> None:
    config, weights = opened(directory)
    with pytest.raises(UnsupportedModelError, match="Architecture MambaForCausalLM is not one of LlamaForCausalLM"):
        build_model(dataclasses.replace(config, architecture="MambaForCausalLM"), weights, OPS, LENGTH)


def test_an_unknown_rotary_scaling_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="'spiral' is not one of default, linear"):
        rotary_table(RotaryConfig(dim=8, kind="spiral"), 64, 64)


def test_layers_are_disjoint_views_that_cover_the_pool(directory: Path) -> None:
    config, _ = opened(directory)
    pool = torch.zeros(3, config.kv_values_per_token * 8 * 2, dtype=torch.uint8)
    shape = KVShape(config.num_layers, config.num_kv_heads, config.head_dim, 8, "bfloat16")
    for index, layer in enumerate(ReferenceOps(torch.device("cpu"), torch.bfloat16).kv_layers(pool, shape)):
        assert isinstance(layer, TorchKVLayer)
        for view in (layer.keys, layer.values):
            assert view.shape == (3, 8, config.num_kv_heads, config.head_dim)
            assert view[0].is_contiguous()
            view += 1 + index
    values = pool.view(torch.bfloat16).view(3, config.num_layers, -1)
    assert [values[:, index].unique().tolist() for index in range(config.num_layers)] == [[1.0], [2.0]]


@pytest.mark.parametrize("ops", [ReferenceOps(torch.device("cpu"), torch.float32), CpuOps(torch.float32, 1)], ids=["reference", "cpu"])
def test_a_pool_of_another_layout_is_refused(ops: Ops, directory: Path) -> None:
    config, _ = opened(directory)
    shape = KVShape(config.num_layers, config.num_kv_heads, config.head_dim, 16, "float32")
    with pytest.raises(ValueError, match="the pool's blocks have 100 bytes"):
        ops.kv_layers(torch.zeros(3, 100, dtype=torch.uint8), shape)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_16_bit_model_follows_its_float32_self(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    save_checkpoint(name, tmp_path)
    tokens = [3 + index * 7 % 90 for index in range(60)]
    wide, narrow = (PagedModel(*load(tmp_path, kind, LENGTH), kind).step({0: tokens})[0] for kind in (torch.float32, dtype))
    assert narrow.dtype == torch.float32
    assert (narrow - wide).abs().mean() < (0.05 if dtype == torch.bfloat16 else 0.01) * wide.std()
