"""The reference operations against naive loops in double precision, over ragged shapes."""

from __future__ import annotations

import math

import pytest
import torch

from octavo.ops.base import AttentionBatch, Ops
from octavo.ops.reference import ReferenceOps
from octavo.ops.reference_attention import TorchKVLayer

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
CPU = torch.device("cpu")


def close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, scale: float = 1.0) -> bool:
    """Whether the largest difference is within the type's rounding of the largest value."""
    bound = TOLERANCES[dtype] * scale * max(1.0, expected.abs().max().item())
    return (actual.double() - expected).abs().max().item() <= bound


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(params=DTYPES, ids=str)
def ops(request: pytest.FixtureRequest) -> Ops:
    return ReferenceOps(CPU, request.param)


@pytest.mark.parametrize("rows", [1, 2, 7, 33])
@pytest.mark.parametrize(("out_features", "in_features"), [(1, 1), (5, 3), (48, 17), (130, 64)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_is_the_product_with_the_transposed_weight(
    ops: Ops, rows: int, out_features: int, in_features: int, with_bias: bool
) -> None:
    x, weight = drawn(rows, in_features, dtype=ops.dtype), drawn(out_features, in_features, dtype=ops.dtype, seed=1)
    bias = drawn(out_features, dtype=ops.dtype, seed=2) if with_bias else None
    packed = ops.pack_linear([weight[: out_features // 2], weight[out_features // 2 :]], bias)
    expected = torch.zeros(rows, out_features, dtype=torch.float64)
    for row in range(rows):
        for column in range(out_features):
            expected[row, column] = (x[row].double() * weight[column].double()).sum()
    if bias is not None:
        expected += bias.double()
    actual = ops.linear(x, packed)
    assert actual.dtype == ops.dtype
    assert (packed.out_features, packed.in_features) == (out_features, in_features)
    assert close(actual, expected, ops.dtype, scale=2.0)
    scores = ops.logits(x, packed, softcap=4.0)
    assert scores.dtype == torch.float32
    assert close(scores, 4.0 * torch.tanh(expected / 4.0), ops.dtype, scale=4.0)


@pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX512"),
    reason="torch's products are known to be independent of the batch only in its AVX-512 build",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("out_features", "in_features"), [(576, 1536), (960, 576), (64, 14336)])
def test_a_row_of_a_product_does_not_depend_on_the_rows_beside_it(dtype: torch.dtype, out_features: int, in_features: int) -> None:
    ops = ReferenceOps(CPU, dtype)
    x, packed = drawn(70, in_features, dtype=dtype), ops.pack_linear([drawn(out_features, in_features, dtype=dtype, seed=1)])
    together = ops.linear(x, packed)
    for first, last in ((0, 1), (3, 4), (3, 8), (5, 38), (69, 70)):
        assert torch.equal(ops.linear(x[first:last], packed), together[first:last])


@pytest.mark.parametrize("scale", [1.0, 48**0.5])
def test_embedding_scales_by_the_rounded_factor(ops: Ops, scale: float) -> None:
    table, ids = drawn(11, 6, dtype=ops.dtype), torch.tensor([3, 0, 10, 3])
    before = table.clone()
    packed = ops.pack_embedding(table, None)
    factor = torch.tensor(scale, dtype=ops.dtype).double()
    expected = torch.stack([table[index].double() * factor for index in ids.tolist()])
    assert close(ops.embedding(ids, packed, scale), expected, ops.dtype)
    assert torch.equal(table, before)


@pytest.mark.parametrize("shape", [(1, 7), (5, 64), (3, 4, 16)])
@pytest.mark.parametrize("plus_one", [False, True])
def test_rms_norm(ops: Ops, shape: tuple[int, ...], plus_one: bool) -> None:
    x, residual = drawn(*shape, dtype=ops.dtype), drawn(*shape, dtype=ops.dtype, seed=1)
    weight = drawn(shape[-1], dtype=torch.float32, seed=2)
    eps, before = 1e-2, x.clone()

    def naive(values: torch.Tensor) -> torch.Tensor:
        rows = values.double().view(-1, shape[-1])
        factor = weight.double() + (1.0 if plus_one else 0.0)
        return torch.stack([row / math.sqrt(float((row * row).mean()) + eps) * factor for row in rows]).view(shape)

    assert close(ops.rms_norm(x, weight, eps, plus_one), naive(x), ops.dtype)
    total = x.float() + residual.float()
    normed, summed = ops.add_rms_norm(x, residual.float(), weight, eps, plus_one)
    assert torch.equal(summed, total)
    assert close(normed, naive(total), ops.dtype)
    assert torch.equal(x, before)


def test_rms_norm_reads_a_slice_of_a_wider_tensor(ops: Ops) -> None:
    wide, weight = drawn(5, 30, dtype=ops.dtype), drawn(8, dtype=torch.float32)
    heads = wide[:, 6:22].view(5, 2, 8)
    assert torch.equal(ops.rms_norm(heads, weight, 1e-6), ops.rms_norm(heads.clone(), weight, 1e-6))


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("rows", [1, 9])
def test_gated_linear(ops: Ops, kind: str, rows: int) -> None:
    x, weight = drawn(rows, 5, dtype=ops.dtype), drawn(26, 5, dtype=ops.dtype, seed=1)
    packed = ops.pack_linear([weight[:13], weight[13:]], gated=True)
    gate_up = ops.linear(x, packed)
    expected = torch.zeros(rows, 13, dtype=torch.float64)
    for row in range(rows):
        for column in range(13):
            gate, up = gate_up[row, column].item(), gate_up[row, column + 13].item()
            silu = gate / (1.0 + math.exp(-gate))
            gelu = 0.5 * gate * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (gate + 0.044715 * gate**3)))
            expected[row, column] = (silu if kind == "silu" else gelu) * up
    assert close(ops.gated_linear(x, packed, kind), expected, ops.dtype, scale=2.0)


def test_unknown_activation_is_refused(ops: Ops) -> None:
    packed = ops.pack_linear([drawn(4, 4, dtype=ops.dtype)], gated=True)
    with pytest.raises(ValueError, match="'relu' is not one of silu, gelu_tanh"):
        ops.gated_linear(drawn(1, 4, dtype=ops.dtype), packed, "relu")


@pytest.mark.parametrize("rotary_dim", [8, 4])
@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("cache_dtype", [None, torch.float32])
def test_rotary_and_cache(ops: Ops, rotary_dim: int, count: int, cache_dtype: torch.dtype | None) -> None:
    heads, kv_heads, dim, block_size = 3, 2, 8, 4
    qkv = drawn(count, (heads + 2 * kv_heads) * dim, dtype=ops.dtype)
    q, k, v = (part.view(count, -1, dim) for part in qkv.split([heads * dim, kv_heads * dim, kv_heads * dim], dim=1))
    angles = drawn(40, rotary_dim // 2, dtype=torch.float32, seed=3)
    table = torch.cat((angles.cos(), angles.sin()), dim=1)
    positions = torch.tensor([31, 0, 7, 39, 8, 9])[:count]
    slots = torch.tensor([13, 2, 22, 3, 0, 27])[:count]
    pool = torch.full((7, 5, block_size, kv_heads, dim), torch.nan, dtype=cache_dtype or ops.dtype)
    kv = TorchKVLayer(keys=pool[:, 1], values=pool[:, 3])
    batch = AttentionBatch(
        positions=positions,
        slots=slots,
        query_starts=torch.arange(count + 1, dtype=torch.int32),
        context_lens=(positions + 1).int(),
        block_tables=torch.zeros(count, 10, dtype=torch.int32),
        query_lens=[1] * count,
        context_lens_host=(positions + 1).tolist(),
        block_size=block_size,
    )

    def naive(x: torch.Tensor) -> torch.Tensor:
        result, half = x.double().clone(), rotary_dim // 2
        for token in range(count):
            for i in range(half):
                angle = angles[positions[token], i].double()
                first, second = x[token, :, i].double(), x[token, :, i + half].double()
                result[token, :, i] = first * angle.cos() - second * angle.sin()
                result[token, :, i + half] = second * angle.cos() + first * angle.sin()
        return result

    expected_q, expected_k, expected_v = naive(q), naive(k), v.double().clone()
    rotated = ops.rotary_and_cache(q, k, v, table, batch, kv)
    assert rotated.shape == (count, heads, dim)
    assert close(rotated, expected_q, ops.dtype)
    for token, slot in enumerate(slots.tolist()):
        block, offset = divmod(slot, block_size)
        assert close(kv.keys[block, offset], expected_k[token], ops.dtype)
        assert close(kv.values[block, offset], expected_v[token], ops.dtype)
    assert int((~pool.isnan()).sum()) == 2 * count * kv_heads * dim


def test_copy_blocks_copies_as_if_at_once(ops: Ops) -> None:
    pool = torch.arange(60, dtype=torch.uint8).view(6, 10)
    before = pool.clone()
    ops.copy_blocks(pool, [(0, 1), (1, 2), (5, 0)])
    assert torch.equal(pool, before[[5, 0, 1, 3, 4, 5]])
    ops.copy_blocks(pool, [])
    assert torch.equal(pool, before[[5, 0, 1, 3, 4, 5]])
