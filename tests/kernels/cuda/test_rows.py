"""The GPU's norms, activations, rotations and cache writes against the reference in float32, over ragged shapes and poisoned outputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attention_cases import step
from paged_steps import on_device

from octavo.ops.base import AttentionBatch, HeadNorms, KVShape
from octavo.ops.cuda.backend import CudaOps
from octavo.ops.cuda.kv import CudaKVLayer
from octavo.ops.reference import ReferenceOps
from octavo.ops.reference_attention import TorchKVLayer

TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
REFERENCE = ReferenceOps(torch.device("cpu"), torch.float32)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def ops(device: torch.device, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> CudaOps:
    """Kernels whose outputs come full of NaN."""
    empty = torch.empty

    def poison(*args: object, **kwargs: object) -> torch.Tensor:
        made = empty(*args, **kwargs)  # type: ignore[call-overload]
        return made.fill_(torch.nan) if made.dtype.is_floating_point else made

    monkeypatch.setattr(torch, "empty", poison)
    return CudaOps(device, dtype)


def close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, scale: float = 1.0) -> bool:
    """Whether the largest difference is within the type's rounding of the largest value."""
    bound = TOLERANCES[dtype] * scale * max(1.0, expected.abs().max().item())
    return (actual.float().cpu() - expected).abs().max().item() <= bound


@pytest.mark.parametrize("shape", [(1, 7), (5, 64), (3, 1025), (3, 4, 16), (2, 3, 80)])
@pytest.mark.parametrize("plus_one", [False, True])
def test_rms_norm(ops: CudaOps, shape: tuple[int, ...], plus_one: bool) -> None:
    x, residual, weight = drawn(*shape).to(ops.dtype), drawn(*shape, seed=1), drawn(shape[-1], seed=2)
    on = [tensor.to(ops.device) for tensor in (x, residual, weight)]
    actual = ops.rms_norm(on[0], on[2], 1e-2, plus_one)
    assert actual.dtype == ops.dtype and actual.shape == x.shape
    assert close(actual, REFERENCE.rms_norm(x.float(), weight, 1e-2, plus_one), ops.dtype)
    assert close(ops.rms_norm(on[1], on[2], 1e-2, plus_one), REFERENCE.rms_norm(residual, weight, 1e-2, plus_one), ops.dtype)
    if len(shape) == 2:
        total = x.float() + residual
        normed, summed = ops.add_rms_norm(on[0], on[1], on[2], 1e-2, plus_one)
        assert torch.equal(summed.cpu(), total)
        assert normed.dtype == ops.dtype
        assert close(normed, REFERENCE.rms_norm(total, weight, 1e-2, plus_one), ops.dtype)


def test_rms_norm_reads_heads_of_a_wider_row(ops: CudaOps) -> None:
    wide, weight = drawn(5, 30).to(ops.device, ops.dtype), drawn(8).to(ops.device)
    heads = wide[:, 6:22].view(5, 2, 8)
    assert torch.equal(ops.rms_norm(heads, weight, 1e-6), ops.rms_norm(heads.clone(), weight, 1e-6))


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("width", [13, 1040])
def test_gated_linear(ops: CudaOps, kind: str, rows: int, width: int) -> None:
    x, weight = drawn(rows, 5).to(ops.dtype), drawn(2 * width, 5, seed=1).to(ops.dtype)
    packed = ops.pack_linear([weight[:width], weight[width:]], gated=True)
    gate_up = ops.linear(x.to(ops.device), packed).float().cpu()
    gate, up = gate_up.chunk(2, dim=1)
    active = torch.nn.functional.silu(gate) if kind == "silu" else torch.nn.functional.gelu(gate, approximate="tanh")
    assert close(ops.gated_linear(x.to(ops.device), packed, kind), active * up, ops.dtype, scale=2.0)


def test_unknown_activation_is_refused(ops: CudaOps) -> None:
    packed = ops.pack_linear([drawn(4, 4)], gated=True)
    with pytest.raises(ValueError, match="'relu' is not one of silu, gelu_tanh"):
        ops.gated_linear(drawn(1, 4).to(ops.device, ops.dtype), packed, "relu")


@pytest.mark.parametrize(("rows", "out_features", "in_features"), [(1, 1, 1), (7, 130, 64)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_products(ops: CudaOps, rows: int, out_features: int, in_features: int, with_bias: bool) -> None:
    x, weight = drawn(rows, in_features).to(ops.dtype), drawn(out_features, in_features, seed=1).to(ops.dtype)
    bias = drawn(out_features, seed=2).to(ops.dtype) if with_bias else None
    packed = ops.pack_linear([weight[: out_features // 2], weight[out_features // 2 :]], bias)
    expected = x.float() @ weight.float().t() + (0.0 if bias is None else bias.float())
    assert close(ops.linear(x.to(ops.device), packed), expected, ops.dtype, scale=2.0)
    scores = ops.logits(x.to(ops.device), packed, softcap=4.0)
    assert scores.dtype == torch.float32
    # Not rounded to the compute type: that would show here.
    assert close(scores, 4.0 * torch.tanh(expected / 4.0), torch.float32, scale=20.0)


@pytest.mark.parametrize("scale", [1.0, 48**0.5])
def test_embedding_scales_by_the_rounded_factor(ops: CudaOps, scale: float) -> None:
    table, ids = drawn(11, 6).to(ops.dtype), torch.tensor([3, 0, 10, 3])
    actual = ops.embedding(ids.to(ops.device), ops.pack_embedding(table, None), scale)
    assert actual.dtype == torch.float32
    assert close(actual, table[ids].float() * torch.tensor(scale, dtype=ops.dtype).float(), ops.dtype)


@pytest.mark.parametrize("normed", ["", "norms", "norms plus one"])
@pytest.mark.parametrize(("dim", "rotary_dim"), [(8, 8), (8, 4), (80, 80), (96, 48)])
@pytest.mark.parametrize("heads", [(3, 2), (9, 9)])
def test_rotary_and_cache(ops: CudaOps, dim: int, rotary_dim: int, heads: tuple[int, int], normed: str) -> None:
    """Rows of three sequences, one of them a graph's padding, whose slot is -1."""
    query_heads, kv_heads = heads
    batch = step([0, 13, 5], [10, 1, 1])
    batch.slots[-1] = -1
    qkv = drawn(12, (query_heads + 2 * kv_heads) * dim).to(ops.dtype)
    splits = [query_heads * dim, kv_heads * dim, kv_heads * dim]
    angles = drawn(40, rotary_dim // 2, seed=3)
    table = torch.cat((angles.cos(), angles.sin()), dim=1)
    pools = [torch.full((200, 1, 2, 8, kv_heads, dim), torch.nan, dtype=kind) for kind in (torch.float32, ops.dtype)]

    kept = AttentionBatch(
        batch.positions[:-1], batch.slots[:-1], batch.query_starts, batch.context_lens, batch.block_tables, [10, 1], [10, 14], 8
    )
    q, k, v = (part.view(12, -1, dim) for part in qkv.float().split(splits, dim=1))
    layer = TorchKVLayer(pools[0][:, 0, 0], pools[0][:, 0, 1])
    weights, norms = (drawn(dim, seed=4), drawn(dim, seed=5)), None
    if normed:
        norms = HeadNorms(*weights, 1e-6, normed == "norms plus one")
    expected = REFERENCE.rotary_and_cache(q[:-1].clone(), k[:-1].clone(), v[:-1].clone(), table, kept, layer, norms)

    if norms is not None:
        norms = replace(norms, queries=norms.queries.to(ops.device), keys=norms.keys.to(ops.device))
    written = pools[1].to(ops.device)
    q, k, v = (part.view(12, -1, dim) for part in qkv.to(ops.device).split(splits, dim=1))
    actual = ops.rotary_and_cache(
        q, k, v, table.to(ops.device), on_device(batch, ops.device), CudaKVLayer(written[:, 0, 0], written[:, 0, 1]), norms
    )
    assert close(actual[:-1], expected, ops.dtype)
    assert torch.equal(written.cpu().isnan(), pools[0].isnan())
    assert close(written.cpu().nan_to_num(), pools[0].nan_to_num(), ops.dtype)


def test_an_eight_bit_cache_rounds_keys_and_values(device: torch.device) -> None:
    ops = CudaOps(device, torch.float32)
    shape = KVShape(1, 2, 16, 8, "fp8")
    pool = torch.zeros(200, 2 * 8 * 2 * 16, dtype=torch.uint8, device=device)
    (layer,) = ops.kv_layers(pool, shape)
    assert isinstance(layer, CudaKVLayer)
    batch = on_device(step([0], [5]), device)
    q, k, v = (drawn(5, 2, 16, seed=seed).to(device) for seed in range(3))
    ops.rotary_and_cache(q, k.clone(), v, torch.cat((torch.ones(5, 8), torch.zeros(5, 8)), 1).to(device), batch, layer)
    blocks, places = batch.slots // 8, batch.slots % 8
    assert torch.equal(layer.keys[blocks, places].float(), k.to(torch.float8_e4m3fn).float())
    assert torch.equal(layer.values[blocks, places].float(), v.to(torch.float8_e4m3fn).float())


def test_copy_blocks_copies_as_if_at_once(device: torch.device) -> None:
    pool = torch.arange(6, dtype=torch.uint8, device=device).unsqueeze(1).repeat(1, 4)
    CudaOps(device, torch.float32).copy_blocks(pool, [(0, 1), (1, 0), (2, 5)])
    assert pool[:, 0].tolist() == [1, 0, 2, 3, 4, 2]


def test_a_pool_of_another_size_or_type_is_refused(device: torch.device) -> None:
    ops = CudaOps(device, torch.float32)
    pool = torch.zeros(3, 100, dtype=torch.uint8, device=device)
    with pytest.raises(ValueError, match="the pool's blocks have 100 bytes"):
        ops.kv_layers(pool, KVShape(1, 2, 16, 8, "float32"))
    with pytest.raises(ValueError, match="no int8 cache"):
        ops.kv_layers(pool, KVShape(1, 2, 16, 8, "int8"))
