"""The C++ attention over the paged cache: right to what its types round, and a row's bits are its own however the step is cut."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from cpu_kernels import (
    ALIKE,
    ALIKE_BF16,
    SIGMAS,
    TANH,
    U_BF16,
    GuardedOps,
    Pool,
    U,
    cpu_ops,
    drawn,
    every_set,
    scattered_step,
    scattered_tables,
    worst,
    write_cache,
)
from paged_steps import attention_batch

from octavo.ops.base import AttentionBatch, AttentionSpec, KVShape
from octavo.ops.cpu.backend import CpuOps
from octavo.ops.reference import ReferenceOps

CHUNK = 256  # positions that attention.cpp merges at a time
BLOCKS = 120
CACHE_TYPES = ["float32", "bfloat16", "int8"]
every_cache = pytest.mark.parametrize("dtype", CACHE_TYPES)

# Cached tokens and query rows of each sequence of a step.
STEPS = {
    "first token": ([0], [1]),
    "one decoding": ([36], [1]),
    "decoding, ragged": ([0, 70, 3, 31, 32, 255, 256], [1] * 7),
    "prompt": ([0], [45]),
    "prompts": ([0, 0, 0], [9, 193, 2]),
    "chunk": ([37], [30]),
    "chunk after one": ([1], [2]),
    "mixed": ([50, 0, 3, 19, 64], [1, 33, 1, 21, 1]),
    "long, decoding": ([699, 511], [1, 1]),
    "long, a chunk": ([230], [60]),
    "long, mixed": ([511, 0, 250, 690], [2, 5, 13, 1]),
}


@dataclass(frozen=True)
class Kind:
    """A layer: heads, key/value heads, head size, block size; ``sharpness`` spreads the scores: 0.3 for nearly even ones."""

    heads: int = 6
    kv_heads: int = 2
    dim: int = 16
    block_size: int = 16
    window: int | None = None
    softcap: float | None = None
    sharpness: float = 1.5

    @property
    def spec(self) -> AttentionSpec:
        return AttentionSpec(self.heads, self.kv_heads, self.dim, self.sharpness / math.sqrt(self.dim), self.window, self.softcap)


# Every head size, block size, kind of grouping, window and cap, each with a step that it has edges in.
CASES: list[tuple[str, Kind]] = [
    ("first token", Kind()),
    ("one decoding", Kind(dim=20, block_size=32)),
    ("decoding, ragged", Kind(heads=9, kv_heads=3, dim=64, block_size=16)),
    ("decoding, ragged", Kind(heads=7, kv_heads=1, dim=72, block_size=48, window=11)),
    ("decoding, ragged", Kind(heads=4, kv_heads=4, dim=96, softcap=5.0, sharpness=8.0)),
    ("prompt", Kind(heads=3, kv_heads=3, dim=80, block_size=32)),
    ("prompt", Kind(heads=6, kv_heads=3, dim=20, window=7)),
    ("prompts", Kind(heads=6, kv_heads=1, dim=64, block_size=48, sharpness=0.3)),
    ("prompts", Kind(heads=2, kv_heads=2, dim=16, window=16, softcap=1.5)),
    ("prompts", Kind(window=1)),
    ("chunk", Kind(heads=2, kv_heads=1, dim=128)),
    ("chunk", Kind(heads=5, kv_heads=1, dim=16, window=2)),
    ("chunk after one", Kind(heads=4, kv_heads=2, dim=192, block_size=32)),
    ("mixed", Kind(heads=4, kv_heads=2, dim=256, window=17)),
    ("mixed", Kind(heads=100, kv_heads=1, dim=16)),
    ("mixed", Kind(heads=9, kv_heads=3, dim=72, block_size=32, window=30, softcap=3.0)),
    ("long, decoding", Kind(heads=9, kv_heads=3, dim=64)),
    ("long, decoding", Kind(heads=2, kv_heads=2, dim=256, window=300, block_size=48, sharpness=0.3)),
    ("long, decoding", Kind(heads=3, kv_heads=1, dim=20, window=256)),
    ("long, a chunk", Kind(heads=6, kv_heads=2, dim=80, block_size=32)),
    ("long, a chunk", Kind(heads=4, kv_heads=1, dim=96, window=31)),
    ("long, mixed", Kind(heads=4, kv_heads=2, dim=128, softcap=20.0, sharpness=6.0)),
    ("long, mixed", Kind(heads=6, kv_heads=2, dim=16, window=257)),
    ("long, mixed", Kind(heads=3, kv_heads=3, dim=72, window=1000)),
]


def case_name(value: object) -> str | None:
    if not isinstance(value, Kind):
        return None
    parts = [f"{value.heads}/{value.kv_heads}x{value.dim}", f"b{value.block_size}"]
    return " ".join(parts + [f"w{value.window}"] * (value.window is not None) + [f"c{value.softcap}"] * (value.softcap is not None))


@pytest.fixture
def ops(kernels: str) -> Iterator[GuardedOps]:
    guarded = GuardedOps(torch.float32, 1, kernels)
    yield guarded
    guarded.assert_guards()


# ---- what attention is -----------------------------------------------------------------------------------------------------------------


def filled(ops: CpuOps, batch: AttentionBatch, kind: Kind, dtype: str, blocks: int = BLOCKS) -> Pool:
    """A pool in which only what the step's rows see is written, and everything else is NaN."""
    pool = Pool(ops, dtype, kind.kv_heads, kind.dim, kind.block_size, blocks)
    contexts, counts = batch.context_lens_host, batch.query_lens
    reach = [max(0, context - count + 1 - (kind.window or context)) for context, count in zip(contexts, counts, strict=True)]
    tables = batch.block_tables.tolist()
    everything = attention_batch(tables, reach, [end - begin for begin, end in zip(reach, contexts, strict=True)], kind.block_size)
    keys, values = drawn(2, len(everything.positions), kind.kv_heads, kind.dim, seed=4)
    write_cache(ops, pool, keys, values, everything)
    return pool


def attended(q: torch.Tensor, batch: AttentionBatch, pool: Pool, spec: AttentionSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over what the cache holds in double, and most that the kernels may be off: [T, Hq, D] each."""
    exact, bound = torch.zeros(2, *q.shape, dtype=torch.float64)
    keys, values = pool.read()
    first, group = 0, spec.num_heads // spec.num_kv_heads
    for table, count, context in zip(batch.block_tables.tolist(), batch.query_lens, batch.context_lens_host, strict=True):
        at = torch.arange(context)
        places = torch.tensor(table)[at // batch.block_size], at % batch.block_size
        rows = torch.arange(context - count, context).unsqueeze(1)
        seen = (at <= rows) & (at > rows - (spec.window or context))
        for head in range(spec.num_heads):
            own_keys, own_values = (cached[places][:, head // group] for cached in (keys, values))
            found = attended_head(q[first : first + count, head], own_keys, own_values, seen, spec, pool.shape.dtype)
            exact[first : first + count, head], bound[first : first + count, head] = found
        first += count
    return exact, bound


def attended_head(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: torch.Tensor, spec: AttentionSpec, dtype: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """One head's rows.

    The bound, step by step. A score is a sum of D products times a factor that is rounded three times; for int8 the sum is exact, but the
    query is in 32512ths of its largest value. An exponential's argument is off by what the score is and by the rounding of its distance
    to the maximum, the exponential by 3 U of its own: together a probability is off by a share `off` of itself, and so are their sum and
    the sum of values, which takes at most CHUNK additions in a row and four roundings a chunk. Where the cache is not float32,
    probabilities are rounded to bfloat16 before they meet the values.
    """
    wide = q.to(torch.bfloat16 if dtype == "bfloat16" else torch.float32).double()
    keys, values = keys.nan_to_num(), values.nan_to_num()
    scores = wide @ keys.T * spec.scale
    if dtype == "int8":
        step = wide.abs().amax(1, keepdim=True) / 32512
        error = spec.scale * SIGMAS * (step / 2) * keys.square().sum(1).sqrt() + 6 * U * scores.abs()
    else:
        error = spec.scale * (spec.head_dim + 3) * U * (wide.abs() @ keys.abs().T)
    if spec.softcap is not None:
        scores, error = spec.softcap * torch.tanh(scores / spec.softcap), error + (TANH + 3 * U) * spec.softcap
    scores = scores.masked_fill(~seen, -torch.inf)
    top = scores.masked_fill(~seen, 0.0).abs().amax(1, keepdim=True)
    off = (error.masked_fill(~seen, 0.0) + 4 * U * top).amax(1, keepdim=True) * 2 + 3 * U
    shares = scores.softmax(1)
    exact, magnitude = shares @ values, shares @ values.abs()
    additions = min(CHUNK, len(keys)) + 4 * (len(keys) / CHUNK + 1)
    bound = (off + additions * U) * (magnitude + exact.abs())
    if dtype != "float32":
        bound += torch.minimum(U_BF16 * magnitude, SIGMAS * U_BF16 * (shares.square() @ values.square()).sqrt())
    return exact, bound


@every_set
@every_cache
@pytest.mark.parametrize(("name", "kind"), CASES, ids=case_name)
def test_paged_attention(ops: GuardedOps, dtype: str, name: str, kind: Kind) -> None:
    batch = scattered_step(*STEPS[name], kind.block_size, BLOCKS)
    pool = filled(ops, batch, kind, dtype)
    q = drawn(len(batch.positions), kind.heads, kind.dim, seed=6)
    result = ops.paged_attention(q, batch, pool.kv, kind.spec)
    assert result.shape == q.shape
    assert worst(result, *attended(q, batch, pool, kind.spec)) < 1


# ---- whole sequences -------------------------------------------------------------------------------------------------------------------

LENGTH = 300
BESIDE = ((0, 7), (41, 1))  # cached tokens and rows of the sequences before and after the one that is looked at


@dataclass(frozen=True)
class Tokens:
    """Queries, keys and values of one sequence and its neighbours, and a rotary table."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    table: torch.Tensor

    @classmethod
    def drawn(cls, kind: Kind, length: int = LENGTH) -> Tokens:
        q, k, v = (drawn(length, heads, kind.dim, seed=heads) for heads in (kind.heads, kind.kv_heads, kind.kv_heads + 100))
        angles = drawn(length, kind.dim // 4, seed=8)
        return cls(q, k, v[:, : kind.kv_heads].contiguous(), torch.cat((angles.cos(), angles.sin()), dim=1))


def computed(ops: CpuOps, kind: Kind, dtype: str, tokens: Tokens, counts: list[int], beside: bool = False) -> torch.Tensor:
    """A sequence's outputs where its steps have ``counts`` rows, alone in each or between two other sequences."""
    pool = Pool(ops, dtype, kind.kv_heads, kind.dim, kind.block_size, BLOCKS)
    tables = scattered_tables([len(tokens.q), 42, 42], kind.block_size, BLOCKS, seed=kind.block_size)
    outputs, cached = [], 0
    if beside:
        write_cache(ops, pool, tokens.k[:41], tokens.v[:41], attention_batch(tables[2:], [0], [41], kind.block_size))
    for count in counts:
        owners, own = ([tables[1], tables[0], tables[2]], 1) if beside else ([tables[0]], 0)
        begins = [BESIDE[0][0], cached, BESIDE[1][0]] if beside else [cached]
        rows = [BESIDE[0][1], count, BESIDE[1][1]] if beside else [count]
        batch = attention_batch(owners, begins, rows, kind.block_size)
        q, k, v = (part[batch.positions] for part in (tokens.q, tokens.k, tokens.v))
        result = ops.paged_attention(ops.rotary_and_cache(q, k, v, tokens.table, batch, pool.kv), batch, pool.kv, kind.spec)
        outputs.append(torch.split(result, rows)[own])
        cached += count
    return torch.cat(outputs)


def with_scratch(ops: CpuOps) -> CpuOps:
    """Kernels whose threads already share enough memory to split one sequence's context among them."""
    ops.linear(torch.zeros(300, 4096), ops.pack_linear([torch.zeros(1, 4096)]))
    return ops


@every_set
@every_cache
@pytest.mark.parametrize(
    "kind",
    [Kind(dim=72, block_size=48), Kind(heads=4, kv_heads=1, dim=20, window=37), Kind(heads=2, dim=16, softcap=2.0, window=270)],
    ids=case_name,
)
def test_a_row_does_not_depend_on_how_the_prompt_is_cut_nor_on_neighbours_nor_on_threads(kernels: str, dtype: str, kind: Kind) -> None:
    tokens = Tokens.drawn(kind)
    whole = computed(GuardedOps(torch.float32, 1, kernels), kind, dtype, tokens, [LENGTH])
    assert not whole.isnan().any()
    cuts = {"whole": [LENGTH], "uneven": [1, 2, 37, 129, 100, 31], "chunk and decoding": [247, *[1] * 13, 40]}
    for threads, name, beside in [(1, "uneven", True), (2, "whole", False), (3, "chunk and decoding", False), (3, "uneven", True)]:
        ops = with_scratch(GuardedOps(torch.float32, threads, kernels))
        assert torch.equal(computed(ops, kind, dtype, tokens, cuts[name], beside), whole)
    other_blocks = replace(kind, block_size=32)
    assert torch.equal(computed(GuardedOps(torch.float32, 1, kernels), other_blocks, dtype, tokens, [LENGTH]), whole)


@every_set
@every_cache
@pytest.mark.parametrize("window", [None, 300])
def test_long_contexts_are_split_among_threads_without_a_trace(kernels: str, dtype: str, window: int | None) -> None:
    kind = Kind(heads=6, kv_heads=2, dim=64, window=window)
    batch = scattered_step([699, 0, 530], [1, 3, 2], kind.block_size, BLOCKS)
    q, results = drawn(6, kind.heads, kind.dim, seed=6), []
    for threads in (1, 2, 3):
        ops = with_scratch(GuardedOps(torch.float32, threads, kernels))
        pool = filled(ops, batch, kind, dtype)
        results.append(ops.paged_attention(q, batch, pool.kv, kind.spec))
        if threads > 1:
            assert torch.equal(results[0], results[-1])
    assert worst(results[0], *attended(q, batch, pool, kind.spec)) < 1


@pytest.mark.parametrize("kernels", ALIKE[:1])
def test_many_sequences_and_many_threads(kernels: str) -> None:
    kind = Kind(heads=3, kv_heads=1)
    batch = scattered_step([index * 7 % 40 for index in range(60)], [1 + index % 2 for index in range(60)], 16, 300)
    q, results = drawn(len(batch.positions), 3, 16, seed=6), []
    for threads in (1, 5):
        ops = with_scratch(GuardedOps(torch.float32, threads, kernels))
        pool = filled(ops, batch, kind, "float32", 300)
        results.append(ops.paged_attention(q, batch, pool.kv, kind.spec))
    assert torch.equal(*results)
    assert worst(results[0], *attended(q, batch, pool, kind.spec)) < 1


@every_cache
def test_instruction_sets_agree_to_the_bit(dtype: str) -> None:
    """As the head of ``csrc/cpu/simd.h`` promises; int8 values meet their probabilities in bfloat16."""
    kind = Kind(dim=72, softcap=3.0, window=100)
    tokens, alike = Tokens.drawn(kind), ALIKE if dtype == "float32" else ALIKE_BF16
    results = [computed(cpu_ops(torch.float32, 1, kernels), kind, dtype, tokens, [LENGTH]) for kernels in alike]
    assert all(torch.equal(result, results[0]) for result in results)


@every_set
@pytest.mark.parametrize("window", [None, 40])
def test_steps_agree_with_the_reference(kernels: str, window: int | None) -> None:
    """Both round alike, in another order: a share of a thousand roundings."""
    kind = Kind(dim=64, window=window)
    tokens, reference = Tokens.drawn(kind), ReferenceOps(torch.device("cpu"), torch.float32)
    pool = torch.full((BLOCKS, 2 * 16 * kind.kv_heads * kind.dim), torch.nan).view(torch.uint8)
    kv = reference.kv_layers(pool, KVShape(1, kind.kv_heads, kind.dim, 16, "float32"))[0]
    batch = scattered_step([0], [LENGTH], 16, BLOCKS)
    q = reference.rotary_and_cache(tokens.q.clone(), tokens.k.clone(), tokens.v, tokens.table, batch, kv)
    expected = reference.paged_attention(q, batch, kv, kind.spec)
    actual = computed(cpu_ops(torch.float32, 1, kernels), kind, "float32", tokens, [100, 1, 199])
    assert (actual - expected).abs().max() < 100 * U * expected.abs().max()


# ---- what is no number -----------------------------------------------------------------------------------------------------------------


@every_set
@every_cache
@pytest.mark.parametrize("window", [None, 21])
@pytest.mark.parametrize("which", ["query", "key", "value"])
def test_what_is_no_number_reaches_the_rows_that_see_it(kernels: str, dtype: str, window: int | None, which: str) -> None:
    ops, kind = GuardedOps(torch.float32, 1, kernels), Kind(heads=2, kv_heads=2, window=window)
    tokens, broken = Tokens.drawn(kind, 70), Tokens.drawn(kind, 70)
    {"query": broken.q, "key": broken.k, "value": broken.v}[which][30, 1, 5] = torch.nan
    harmless, result = (computed(ops, kind, dtype, each, [70]) for each in (tokens, broken))
    reached = torch.zeros(70, dtype=torch.bool)
    reached[30 : 31 if which == "query" else 30 + (window or 70)] = True
    assert torch.equal(result[:, 1].isnan().any(1), reached)
    assert torch.equal(result[:, 0], harmless[:, 0])
    assert torch.equal(result[~reached], harmless[~reached])


@every_set
@every_cache
def test_scores_of_any_size(kernels: str, dtype: str) -> None:
    """The largest takes all, equal ones share, whatever their size."""
    ops, kind = GuardedOps(torch.float32, 1, kernels), Kind(heads=1, kv_heads=1, sharpness=4.0)
    keys, values = torch.zeros(40, 1, 16), drawn(40, 1, 16)
    keys[7] = 16.0
    keys[33] = -16.0
    batch = scattered_step([0], [40], 16, BLOCKS)
    pool = Pool(ops, dtype, 1, 16, 16, BLOCKS)
    write_cache(ops, pool, keys, values, batch)
    cached = pool.read()[1][batch.slots // 16, batch.slots % 16, 0]
    for size, taken in ((1e4, cached[7]), (-1e4, cached[33]), (0.0, cached.mean(0)), (1e30, cached[7])):
        last = attention_batch(batch.block_tables.tolist(), [39], [1], 16)
        result = ops.paged_attention(torch.full((1, 1, 16), size), last, pool.kv, kind.spec)
        assert (result[0, 0] - taken).abs().max() < (1e-6 if dtype == "float32" else U_BF16) * cached.abs().max()


@every_set
@pytest.mark.parametrize("width", [1.0, 60.0])
def test_exponentials_are_right_to_a_few_roundings(kernels: str, width: float) -> None:
    """Two positions whose scores are 0 and any number, their values 0 and 1: probabilities by themselves.

    Three factors make the score, the exponential is 3 U off, and a sum and a quotient follow.
    """
    ops, heads = GuardedOps(torch.float32, 1, kernels), 96
    batch = scattered_step([0], [2], 16, BLOCKS)
    pool = Pool(ops, "float32", 1, 16, 16, BLOCKS)
    keys, values = torch.zeros(2, 2, 1, 16)
    keys[1, 0, 3] = values[1] = 1.0
    write_cache(ops, pool, keys, values, batch)
    last = attention_batch(batch.block_tables.tolist(), [1], [1], 16)
    scores = torch.linspace(-width, width, 10 * heads).view(10, heads)
    for some in scores:
        q = torch.zeros(1, heads, 16)
        q[0, :, 3] = some
        result = ops.paged_attention(q, last, pool.kv, AttentionSpec(heads, 1, 16, 1.0))
        exact = torch.sigmoid(some.double()).unsqueeze(1).expand(-1, 16)
        assert worst(result[0], exact, exact * (6 + 3 * some.double().abs().unsqueeze(1)) * U) < 1
