"""The C++ kernels' norms, sums, gates, rotations and cache writes: right to float32's rounding, the same bits on any threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cpu_kernels import ALIKE, GuardedOps, Pool, U, cpu_ops, drawn, every_set, no_rotation, run_alone, scattered_step, worst, write_cache

from octavo.ops.base import AttentionBatch, KVShape
from octavo.ops.cpu.backend import CpuOps
from octavo.ops.workspace import CPU_POOL_SPARE_BYTES

CACHE_TYPES = ["float32", "bfloat16", "int8"]
WIDTHS = [1, 15, 16, 17, 64, 97, 576, 1536]
EPS = 1e-2


@pytest.fixture
def ops(kernels: str) -> Iterator[GuardedOps]:
    guarded = GuardedOps(torch.float32, 1, kernels)
    yield guarded
    guarded.assert_guards()


# ---- norms -------------------------------------------------------------------------------------------------------------------------


def normed(x: torch.Tensor, weight: torch.Tensor, plus_one: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """RMSNorm in double and what float32 may be off: squares are added in 64 sums, whose error the root halves; ten more roundings."""
    wide, width = x.double(), x.shape[-1]
    exact = wide / (wide.square().mean(-1, keepdim=True) + EPS).sqrt() * (weight.double() + (1.0 if plus_one else 0.0))
    return exact, (width / 128 + 11) * U * exact.abs()


@every_set
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("plus_one", [False, True])
def test_rms_norm(ops: GuardedOps, width: int, plus_one: bool) -> None:
    x, weight = drawn(7, width), drawn(width, seed=2)
    x[1] *= 1e-4
    x[2] *= 1e8
    x[3] = 0.0
    before = x.clone()
    assert worst(ops.rms_norm(x, weight, EPS, plus_one), *normed(x, weight, plus_one)) < 1
    residual = drawn(7, width, seed=3)
    total = x + residual
    result, summed = ops.add_rms_norm(x, residual, weight, EPS, plus_one)
    assert torch.equal(summed, total)
    assert summed is residual
    assert torch.equal(result, ops.rms_norm(total, weight, EPS, plus_one))
    assert torch.equal(x, before)


@every_set
@pytest.mark.parametrize("dim", [16, 20, 64, 72, 80, 128, 256])
@pytest.mark.parametrize("heads", [1, 3])
def test_rms_norm_of_heads_in_wider_rows(ops: GuardedOps, dim: int, heads: int) -> None:
    wide, weight = drawn(5, (heads + 2) * dim + 3), drawn(dim, seed=2)
    x = wide[:, dim : (heads + 1) * dim].view(5, heads, dim)
    result = ops.rms_norm(x, weight, EPS, True)
    assert result.shape == x.shape
    assert worst(result, *normed(x, weight, True)) < 1
    for head in range(heads):
        assert torch.equal(result[:, head], ops.rms_norm(x[:, head], weight, EPS, True))


@every_set
def test_rms_norm_takes_other_types(ops: GuardedOps) -> None:
    x, weight = drawn(5, 33).bfloat16(), drawn(33, seed=2)
    assert torch.equal(ops.rms_norm(x, weight, EPS), ops.rms_norm(x.float(), weight, EPS))


@every_set
def test_rms_norm_takes_other_strides(ops: GuardedOps) -> None:
    x, weight = drawn(5, 66)[:, ::2], drawn(33, seed=2)
    assert torch.equal(ops.rms_norm(x, weight, EPS), ops.rms_norm(x.contiguous(), weight, EPS))


@every_set
@pytest.mark.parametrize("threads", [1, 3])
def test_a_norm_can_be_added_to_what_is_there(kernels: str, threads: int) -> None:
    ops = GuardedOps(torch.float32, threads, kernels)
    x, weight, there = drawn(5, 3, 41), drawn(41, seed=2), drawn(5, 123, seed=3)
    expected = there + ops.rms_norm(x, weight, EPS).flatten(1)
    run_alone(
        ops, "norm", 5, input=x.data_ptr(), input_stride=123, weight=weight.data_ptr(), eps=EPS, plus_one=False, heads=3, width=41,
        output=there.data_ptr(), output_stride=123, add=True,
    )  # fmt: skip
    assert torch.equal(there, expected)


# ---- sums and gates ------------------------------------------------------------------------------------------------------------------


@every_set
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("width", [1, 17, 97, 576])
def test_add_and_gated_share_rows_or_columns(kernels: str, threads: int, rows: int, width: int) -> None:
    """Fewer rows than threads are cut by columns. Gates are within 10 roundings of the larger activation, as in ``test_cpu_linear``."""
    ops = GuardedOps(torch.float32, threads, kernels)
    both, whole = drawn(rows, 2 * width), drawn(rows, width + 3, seed=1)
    there = whole[:, :width]
    expected, beside = there + both[:, :width], whole[:, width:].clone()
    run_alone(
        ops, "add", rows, input=both.data_ptr(), input_stride=2 * width, output=there.data_ptr(), output_stride=width + 3, width=width
    )
    assert torch.equal(there, expected)
    gate, up = (part.double() for part in both.chunk(2, dim=1))
    for kind, exact in (("silu", F.silu(gate) * up), ("gelu_tanh", F.gelu(gate, approximate="tanh") * up)):
        run_alone(
            ops, "gated", rows, input=both.data_ptr(), input_stride=2 * width, activation=kind, output=there.data_ptr(),
            output_stride=width + 3, width=width,
        )  # fmt: skip
        assert worst(there, exact, 11 * U * (gate * up).abs()) < 1
    assert torch.equal(whole[:, width:], beside)


# ---- rotations and the cache ---------------------------------------------------------------------------------------------------------

HEADS, KV_HEADS = 3, 2


def rotated(x: torch.Tensor, table: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[T, heads, D] rotated in double, and most that two products and a sum are off: three roundings where fma is two."""
    half = table.shape[1] // 2
    cosine, sine = (part.unsqueeze(1) for part in torch.chunk(table[positions].double(), 2, dim=1))
    exact, bound = x.double().clone(), torch.zeros(x.shape, dtype=torch.float64)
    first, second = x[..., :half].double(), x[..., half : 2 * half].double()
    exact[..., :half], exact[..., half : 2 * half] = first * cosine - second * sine, second * cosine + first * sine
    bound[..., :half], bound[..., half : 2 * half] = (
        (first * cosine).abs() + (second * sine).abs(),
        (second * cosine).abs() + (first * sine).abs(),
    )
    return exact, 2.01 * U * bound


def rotary_table(positions: int, rotary_dim: int) -> torch.Tensor:
    angles = drawn(positions, rotary_dim // 2, seed=8) * 3
    return torch.cat((angles.cos(), angles.sin()), dim=1)


def drawn_heads(count: int, dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values as they lie in a product's rows, some keys and values all zero."""
    qkv = drawn(count, (HEADS + 2 * KV_HEADS) * dim)
    q, k, v = (part.view(count, -1, dim) for part in torch.split(qkv, [HEADS * dim, KV_HEADS * dim, KV_HEADS * dim], dim=1))
    k[0, 0] = v[0, 1] = 0.0
    return q, k, v


def in_cache(x: torch.Tensor, dtype: str) -> torch.Tensor:
    """What the cache holds of [T, heads, D]: float64. int8 counts 127ths of a head's largest magnitude."""
    if dtype != "int8":
        return x.to(getattr(torch, dtype)).double()
    scale = x.abs().amax(2, keepdim=True) / 127
    return torch.where(scale > 0, x / scale, 0.0).round().double() * scale.double()


def mixed_step(block_size: int) -> AttentionBatch:
    """A prompt, a decoding sequence, a chunk and a first token."""
    return scattered_step([0, 70, 33, 0], [39, 1, 21, 1], block_size, 40)


@every_set
@pytest.mark.parametrize("dtype", CACHE_TYPES)
@pytest.mark.parametrize(
    ("dim", "rotary_dim", "block_size"), [(16, 16, 16), (16, 2, 48), (20, 20, 32), (64, 32, 16), (72, 24, 48), (80, 32, 16), (256, 256, 32)]
)
def test_rotary_and_cache(ops: GuardedOps, dtype: str, dim: int, rotary_dim: int, block_size: int) -> None:
    batch, table = mixed_step(block_size), rotary_table(80, rotary_dim)
    pool, other = (Pool(ops, dtype, KV_HEADS, dim, block_size, 40) for _ in range(2))
    q, k, v = drawn_heads(len(batch.positions), dim)
    # A key rotated as a query: what the cache must hold to the bit.
    key_as_query = torch.cat((k, q[:, :1]), dim=1)
    ops.rotary_and_cache(key_as_query, k.clone(), v, table, batch, other.kv)
    exact, exact_key = rotated(q, table, batch.positions), rotated(k, table, batch.positions)
    assert worst(key_as_query[:, :KV_HEADS], *exact_key) < 1
    before = v.clone()
    assert worst(ops.rotary_and_cache(q, k, v, table, batch, pool.kv), *exact) < 1
    assert torch.equal(v, before)
    blocks, offsets = batch.slots // block_size, batch.slots % block_size
    keys, values = pool.read()
    assert torch.equal(keys[blocks, offsets], in_cache(key_as_query[:, :KV_HEADS], dtype))
    assert torch.equal(values[blocks, offsets], in_cache(v, dtype))
    keys[blocks, offsets] = values[blocks, offsets] = torch.nan
    assert keys.isnan().all()
    assert values.isnan().all()
    for layer in range(Pool.LAYERS):
        assert layer == Pool.LAYER or (pool.layer_bytes(layer) == 255).all()


@every_set
@pytest.mark.parametrize("dtype", CACHE_TYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_key_or_value_that_is_no_number_is_none_in_the_cache(ops: GuardedOps, dtype: str, value: float) -> None:
    """In int8 the whole head of the slot is lost, in the others the one value; no other slot or head is."""
    batch, pool = mixed_step(16), Pool(ops, dtype, KV_HEADS, 32, 16, 40)
    _, k, v = drawn_heads(len(batch.positions), 32)
    k[5, 1, 7] = v[40, 0, 31] = value
    write_cache(ops, pool, k, v, batch)
    keys, values = (cached[batch.slots // 16, batch.slots % 16] for cached in pool.read())
    broken_keys, broken_values = torch.zeros_like(keys, dtype=torch.bool), torch.zeros_like(keys, dtype=torch.bool)
    broken_keys[5, 1, slice(None) if dtype == "int8" else 7] = True
    broken_values[40, 0, slice(None) if dtype == "int8" else 31] = True
    # A rotation by nothing still multiplies the other half's infinity by 0.
    if dtype != "int8":
        broken_keys[5, 1, 7 + 16] = True
    assert torch.equal(~keys.isfinite(), broken_keys)
    assert torch.equal(~values.isfinite(), broken_values)


@every_set
@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("dim", [16, 20, 64, 80, 256])
def test_norms_folded_into_the_rotation_are_the_same_norms(ops: GuardedOps, dim: int, plus_one: bool) -> None:
    """To the bit, wherever the norm stands."""
    batch, table = mixed_step(16), rotary_table(80, dim)
    pools = [Pool(ops, "float32", KV_HEADS, dim, 16, 40) for _ in range(2)]
    q, k, v = drawn_heads(len(batch.positions), dim)
    weights = drawn(2, dim, seed=6)
    expected = ops.rotary_and_cache(
        ops.rms_norm(q, weights[0], EPS, plus_one).contiguous(), ops.rms_norm(k, weights[1], EPS, plus_one), v, table, batch, pools[0].kv
    )
    norms = {"q_norm": weights[0].data_ptr(), "k_norm": weights[1].data_ptr(), "eps": EPS, "plus_one": plus_one}
    run_rotation(ops, q, k, v, table, batch, pools[1], norms)
    assert torch.equal(q, expected)
    assert torch.equal(pools[0].bytes, pools[1].bytes)


def run_rotation(
    ops: CpuOps,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    table: torch.Tensor,
    batch: AttentionBatch,
    pool: Pool,
    norms: dict[str, Any],
) -> None:
    """``ops.rotary_and_cache`` with norms, which only a recorded pass has."""
    run = ops._run

    def with_norms(name: str, rows: int, arguments: dict[str, Any], **step: Any) -> None:
        run(name, rows, arguments | norms, **step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "_run", with_norms)
        ops.rotary_and_cache(q, k, v, table, batch, pool.kv)


# ---- the same bits ---------------------------------------------------------------------------------------------------------------------


@every_set
@pytest.mark.parametrize("dtype", CACHE_TYPES)
def test_a_row_does_not_depend_on_the_rows_beside_it_nor_on_threads(kernels: str, dtype: str) -> None:
    batch, table, dim, weight = mixed_step(16), rotary_table(80, 24), 72, drawn(72, seed=2)
    results = []
    for threads in (1, 2, 3):
        ops = GuardedOps(torch.float32, threads, kernels)
        pool = Pool(ops, dtype, KV_HEADS, dim, 16, 40)
        q, k, v = drawn_heads(len(batch.positions), dim)
        result = ops.rotary_and_cache(ops.rms_norm(q, weight, EPS).contiguous(), k, v, table, batch, pool.kv)
        results.append((result, pool.bytes))
        for row in (0, 17, 39, 61):
            assert torch.equal(
                ops.rms_norm(drawn_heads(62, dim)[0][row : row + 1], weight, EPS),
                ops.rms_norm(drawn_heads(62, dim)[0], weight, EPS)[row : row + 1],
            )
        ops.assert_guards()
    for result, memory in results:
        assert torch.equal(result, results[0][0])
        assert torch.equal(memory, results[0][1])


def test_instruction_sets_agree_to_the_bit() -> None:
    """As the head of ``csrc/cpu/simd.h`` promises."""
    results = []
    for kernels in ALIKE:
        ops, batch, table = cpu_ops(torch.float32, 1, kernels), mixed_step(16), rotary_table(80, 24)
        q, k, v = drawn_heads(len(batch.positions), 72)
        parts = [ops.rms_norm(drawn(7, width), drawn(width, seed=2), EPS, True) for width in WIDTHS]
        for dtype in CACHE_TYPES:
            pool = Pool(ops, dtype, KV_HEADS, 72, 16, 40)
            parts += [ops.rotary_and_cache(q.clone(), k, v, table, batch, pool.kv), pool.bytes.float()]
        results.append(torch.cat([part.flatten() for part in parts]))
    assert all(torch.equal(result, results[0]) for result in results)


# ---- the pool ------------------------------------------------------------------------------------------------------------------------


def test_copy_blocks_copies_as_if_at_once() -> None:
    ops, pool = CpuOps(torch.float32, 1), torch.arange(60, dtype=torch.uint8).view(6, 10)
    before = pool.clone()
    ops.copy_blocks(pool, [(0, 1), (1, 2), (5, 0)])
    assert torch.equal(pool, before[[5, 0, 1, 3, 4, 5]])
    ops.copy_blocks(pool, [])
    assert torch.equal(pool, before[[5, 0, 1, 3, 4, 5]])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (KVShape(1, 2, 16, 24, "float32"), "blocks of a multiple of 16 slots; got 24"),
        (KVShape(1, 2, 18, 16, "int8"), "no int8 cache for heads of 18"),
        (KVShape(1, 2, 15, 16, "bfloat16"), "no bfloat16 cache for heads of 15"),
        (KVShape(1, 2, 16, 16, "float16"), "no float16 cache for heads of 16"),
        (KVShape(1, 2, 16, 16, "float32"), "the pool's blocks have 64 bytes; 1 layers of 4096 bytes are needed"),
    ],
    ids=lambda value: "" if isinstance(value, str) else f"{value.block_size} slots of {value.head_dim} {value.dtype}",
)
def test_pools_of_another_shape_are_refused(shape: KVShape, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CpuOps(torch.float32, 1).kv_layers(torch.zeros(3, 64, dtype=torch.uint8), shape)


def test_pools_whose_end_is_the_end_of_memory_are_refused() -> None:
    ops, shape = CpuOps(torch.float32, 1), KVShape(1, 2, 16, 16, "float32")
    memory = torch.zeros(3 * 4096 + CPU_POOL_SPARE_BYTES, dtype=torch.uint8)
    assert ops.kv_layers(memory[:-CPU_POOL_SPARE_BYTES].view(3, 4096), shape)
    with pytest.raises(ValueError, match="64 readable bytes behind the pool; there are 63"):
        ops.kv_layers(memory[1 : 3 * 4096 + 1].view(3, 4096), shape)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_heads_of_another_kind_are_refused(name: str) -> None:
    ops, batch = CpuOps(torch.float32, 1), mixed_step(16)
    parts = dict(zip("qkv", drawn_heads(len(batch.positions), 16), strict=True))
    pool = Pool(ops, "float32", KV_HEADS, 16, 16, 40)
    for wrong in (parts[name].bfloat16(), parts[name].flatten(1), parts[name].transpose(1, 2)):
        with pytest.raises(ValueError, match=f"{name} must be float32 heads"):
            ops.rotary_and_cache(**(parts | {name: wrong}), cos_sin=no_rotation(80, 16), batch=batch, kv=pool.kv)
