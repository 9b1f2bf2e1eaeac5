"""A recorded pass gives the bits of the calls it was recorded from: in pieces, with norms and sums folded, and only where they may be."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cpu_kernels import GuardedOps, Pool, drawn, every_set, scattered_step
from cpu_products import drawn_weight
from paged_steps import attention_batch

from octavo.ops import _cpu
from octavo.ops.base import AttentionBatch, AttentionSpec, Forward, KVLayer, StepLimits
from octavo.ops.cpu import tape
from octavo.ops.cpu.backend import CpuOps
from octavo.ops.workspace import CPU_PIECE_ROWS

WIDTH, HEADS, KV_HEADS, DIM, INNER, TOKENS, LAYERS = 64, 4, 2, 16, 96, 50, 3
QKV = [HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM]
EPS = 1e-3

STEPS = {
    "first token": ([0], [1]),
    "decoding": ([36, 3, 70], [1, 1, 1]),
    "mixed": ([50, 0, 3], [1, 33, 11]),
    "a piece to the row": ([0, 9], [500, 12]),
    "a row more": ([0, 9], [500, 13]),
    "pieces within and between sequences": ([0, 5, 3, 0, 8], [500, 12, 700, 1, 30]),
    "a prompt of three pieces": ([20], [1200]),
    "many sequences": ([index % 40 for index in range(700)], [1] * 700),
}


# ---- models ----------------------------------------------------------------------------------------------------------------------------


class Layers:
    """Weights of a small model, packed in formats of several kinds, and the calls that models make of them."""

    def __init__(self, ops: CpuOps, formats: list[str], window: int | None = None, head_norms: bool = True) -> None:
        self.ops = ops
        self.spec = AttentionSpec(HEADS, KV_HEADS, DIM, 0.3, window)
        self.head_norms = head_norms
        angles = drawn(1300, DIM // 2, seed=8)
        self.rotary = torch.cat((angles.cos(), angles.sin()), dim=1)
        self.table = ops.pack_embedding(drawn_weight(formats[0], TOKENS, WIDTH), None)
        self.norms = drawn(6, WIDTH, seed=2) + 1
        self.heads = drawn(2, DIM, seed=3) + 1
        qkv = [drawn_weight(packed, size, WIDTH, size) for packed, size in zip(formats, QKV, strict=True)]
        self.qkv = ops.pack_linear(qkv, drawn(sum(QKV)))
        self.output = ops.pack_linear([drawn_weight(formats[0], WIDTH, HEADS * DIM)])
        self.gate_up = ops.pack_linear([drawn_weight(packed, INNER, WIDTH, 5) for packed in formats[1:]], gated=True)
        self.down = ops.pack_linear([drawn_weight(formats[2], WIDTH, INNER)], drawn(WIDTH))

    def norm(self, x: torch.Tensor, index: int) -> torch.Tensor:
        return self.ops.rms_norm(x, self.norms[index], EPS, index % 2 == 1)

    def add(self, x: torch.Tensor, residual: torch.Tensor, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.ops.add_rms_norm(x, residual, self.norms[index], EPS, index % 2 == 1)

    def attention(self, x: torch.Tensor, batch: AttentionBatch, kv: KVLayer) -> torch.Tensor:
        q, k, v = (part.view(len(x), -1, DIM) for part in torch.split(self.ops.linear(x, self.qkv), QKV, dim=1))
        if self.head_norms:
            q, k = self.ops.rms_norm(q, self.heads[0], EPS), self.ops.rms_norm(k, self.heads[1], EPS)
        q = self.ops.rotary_and_cache(q, k, v, self.rotary, batch, kv)
        return self.ops.linear(self.ops.paged_attention(q, batch, kv, self.spec).flatten(1), self.output)

    def network(self, x: torch.Tensor) -> torch.Tensor:
        return self.ops.linear(self.ops.gated_linear(x, self.gate_up, "silu"), self.down)

    def llama(self, token_ids: torch.Tensor, batch: AttentionBatch, kv: list[KVLayer]) -> torch.Tensor:
        residual = self.ops.embedding(token_ids, self.table)
        hidden = self.norm(residual, 0)
        for layer in kv:
            hidden, residual = self.add(self.attention(hidden, batch, layer), residual, 1)
            hidden, residual = self.add(self.network(hidden), residual, 2)
        return hidden

    def gemma(self, token_ids: torch.Tensor, batch: AttentionBatch, kv: list[KVLayer]) -> torch.Tensor:
        residual = self.ops.embedding(token_ids, self.table, 8.0)
        hidden = self.norm(residual, 0)
        for layer in kv:
            hidden, residual = self.add(self.norm(self.attention(hidden, batch, layer), 3), residual, 1)
            hidden, residual = self.add(self.norm(self.network(hidden), 4), residual, 5)
        return hidden


LIMITS = StepLimits(64, 64)


@dataclass
class Runs:
    """A forward pass recorded and called, each with a pool of its own."""

    ops: GuardedOps
    forward: Forward
    dtype: str = "float32"
    blocks: int = 1

    def __post_init__(self) -> None:
        self.recorded_pool, self.called_pool = (Pool(self.ops, self.dtype, KV_HEADS, DIM, 16, self.blocks) for _ in range(2))
        self.recorded = self.ops.prepare_forward(self.forward, self.layers(self.recorded_pool), LIMITS)

    def layers(self, pool: Pool) -> list[KVLayer]:
        return self.ops.kv_layers(pool.bytes, pool.shape)

    def assert_same(self, token_ids: torch.Tensor, batch: AttentionBatch) -> None:
        called = self.forward(token_ids, batch, self.layers(self.called_pool))
        assert torch.equal(self.recorded(token_ids, batch), called)
        assert not called.isnan().any()
        assert torch.equal(self.recorded_pool.bytes, self.called_pool.bytes)
        self.ops.assert_guards()


def context_first(runs: Runs, cached: list[int], counts: list[int], blocks: int) -> AttentionBatch:
    """A step, after the tokens that it finds in the cache have been computed by it."""
    batch = scattered_step(cached, counts, 16, blocks)
    some = [index for index, count in enumerate(cached) if count]
    if some:
        tables = batch.block_tables.tolist()
        before = attention_batch([tables[index] for index in some], [0] * len(some), [cached[index] for index in some], 16)
        runs.assert_same(token_ids(len(before.positions)), before)
    return batch


def token_ids(count: int) -> torch.Tensor:
    return torch.randint(TOKENS, (count,), generator=torch.Generator().manual_seed(count))


MODELS: dict[str, Callable[[CpuOps], Forward]] = {
    "llama": lambda ops: Layers(ops, ["bf16", "bf16", "bf16"]).llama,
    "llama in blocks": lambda ops: Layers(ops, ["u8_block", "u8_block", "u8_block"], window=20, head_norms=False).llama,
    "llama in several formats": lambda ops: Layers(ops, ["u4_block", "u8_row", "bf16"]).llama,
    "gemma": lambda ops: Layers(ops, ["u4_block_min", "u4_block_min", "u4_block_min"], window=20).gemma,
}


@every_set
@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize("name", ["first token", "decoding", "mixed"])
def test_models(kernels: str, model: str, name: str) -> None:
    ops = GuardedOps(torch.bfloat16, 1, kernels)
    runs = Runs(ops, MODELS[model](ops), "bfloat16" if model == "llama" else "float32", 40)
    batch = context_first(runs, *STEPS[name], 40)
    runs.assert_same(token_ids(len(batch.positions)), batch)


@every_set
@pytest.mark.parametrize("name", list(STEPS)[3:])
def test_long_steps_in_pieces(kernels: str, name: str) -> None:
    if kernels == "scalar" and name == "many sequences":
        pytest.skip("the scalar kernels are slow, and cut steps as the others do")
    assert CPU_PIECE_ROWS == 512
    ops = GuardedOps(torch.bfloat16, 1, kernels)
    runs = Runs(ops, MODELS["llama in blocks"](ops), "int8", 1600)
    batch = context_first(runs, *STEPS[name], 1600)
    runs.assert_same(token_ids(len(batch.positions)), batch)


@every_set
def test_any_number_of_threads(kernels: str) -> None:
    """What runs after a long step finds much memory shared: attention is then split."""
    first = scattered_step([0, 0], [300, 9], 16, 60)
    after = attention_batch(first.block_tables.tolist(), [300, 9], [1, 2], 16)
    results = []
    for threads in (1, 2, 3):
        ops = GuardedOps(torch.bfloat16, threads, kernels)
        runs = Runs(ops, MODELS["llama"](ops), "bfloat16", 60)
        for batch in (first, after):
            runs.assert_same(token_ids(len(batch.positions)), batch)
        results.append(runs.recorded(token_ids(3), after))
    assert torch.equal(results[1], results[0])
    assert torch.equal(results[2], results[0])


# ---- folding ---------------------------------------------------------------------------------------------------------------------------


def operations_of(monkeypatch: pytest.MonkeyPatch, ops: CpuOps, forward: Forward) -> Counter[str]:
    """How many operations of each kind the recorded pass has."""
    counts: Counter[str] = Counter()

    class Counted:
        def __init__(self, *arguments: Any) -> None:
            self.program = _cpu.Program(*arguments)

        def __getattr__(self, name: str) -> Any:
            counts[name] += 1
            return getattr(self.program, name)

    monkeypatch.setattr(tape, "_cpu", SimpleNamespace(Program=Counted))
    pool = Pool(ops, "float32", KV_HEADS, DIM, 16, 1)
    ops.prepare_forward(forward, ops.kv_layers(pool.bytes, pool.shape), LIMITS)
    del counts["set_result"]
    return counts


def test_norms_and_sums_are_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of llama's pass all but the last norm, which is the result; with head norms the keys', since queries are read after the rotation."""
    ops = CpuOps(torch.bfloat16, 1)
    plain = {"embedding": 1, "linear": 4 * LAYERS, "rotary_cache": LAYERS, "attention": LAYERS, "norm": 1}
    formats = ["bf16", "bf16", "bf16"]
    assert operations_of(monkeypatch, ops, Layers(ops, formats, head_norms=False).llama) == plain
    assert operations_of(monkeypatch, ops, Layers(ops, formats).llama) == plain | {"norm": 1 + LAYERS}


class Calls:
    """A few weights [WIDTH, WIDTH], and passes in which something must not be folded."""

    def __init__(self, ops: CpuOps) -> None:
        self.ops = ops
        self.table = ops.pack_embedding(drawn(TOKENS, WIDTH), None)
        self.weights = [ops.pack_linear([drawn(WIDTH, WIDTH, seed=seed) / 8]) for seed in range(3)]
        self.mixed = ops.pack_linear([drawn_weight(packed, WIDTH // 2, WIDTH) for packed in ("u4_block", "u8_block")])
        self.gates = ops.pack_linear([drawn(WIDTH, WIDTH, seed=seed) / 8 for seed in (4, 5)], gated=True)
        self.norms = drawn(3, WIDTH, seed=6) + 1

    def start(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self.ops.embedding(token_ids, self.table)

    def linear(self, x: torch.Tensor, index: int = 0) -> torch.Tensor:
        return self.ops.linear(x, self.weights[index])

    def norm(self, x: torch.Tensor, index: int = 0) -> torch.Tensor:
        return self.ops.rms_norm(x, self.norms[index], EPS, index == 1)

    def add(self, x: torch.Tensor, residual: torch.Tensor, index: int = 0) -> torch.Tensor:
        """Adds in place; the sum's norm."""
        return self.ops.add_rms_norm(x, residual, self.norms[index], EPS)[0]

    # ---- passes

    def a_norm_with_two_readers(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        return self.add(self.linear(normed), self.linear(normed, 1))

    def a_norm_whose_source_changes_before_it_is_read(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        self.add(self.linear(x, 1), x)
        return self.linear(normed)

    def a_norm_that_is_the_result(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        self.linear(normed)
        return normed

    def a_norm_of_a_norm(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(self.norm(x), 1))

    def a_norm_that_is_added(self, x: torch.Tensor) -> torch.Tensor:
        return self.add(self.norm(x, 1), x)

    def a_norm_that_is_added_to(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        self.add(x, normed, 1)
        return self.linear(normed)

    def a_norm_of_two_parts(self, x: torch.Tensor) -> torch.Tensor:
        return self.ops.linear(self.norm(x), self.mixed)

    def a_norm_of_which_a_part_is_read(self, x: torch.Tensor) -> torch.Tensor:
        narrow = self.ops.pack_linear([drawn(WIDTH, WIDTH // 2)])
        return self.ops.linear(self.norm(x)[:, : WIDTH // 2], narrow)

    def norms_of_parts_of_which_all_are_read(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.ops.rms_norm(x.view(len(x), 4, -1), self.norms[0, : WIDTH // 4], EPS).flatten(1))

    def a_product_that_is_added_and_read(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        self.add(y, x)
        return self.linear(self.norm(y), 1)

    def a_product_that_is_added_and_the_result(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        self.add(y, x)
        return y

    def a_product_of_what_it_is_added_to(self, x: torch.Tensor) -> torch.Tensor:
        return self.add(self.linear(x), x)

    def a_product_of_the_norm_of_what_it_is_added_to(self, x: torch.Tensor) -> torch.Tensor:
        return self.add(self.linear(self.norm(x)), x)

    def a_product_added_after_the_total_is_read(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(self.linear(x))
        z = self.linear(x, 1)
        self.add(y, x)
        return self.add(z, x)

    def a_product_added_after_the_total_is_written(self, x: torch.Tensor) -> torch.Tensor:
        y, z = self.linear(self.norm(x)), self.linear(self.norm(x, 1), 1)
        self.add(z, x)
        return self.add(y, x)

    def a_product_added_twice(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        self.add(y, x)
        return self.add(y, x)

    def a_product_added_to_itself(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        return self.add(y, y)

    def a_product_of_two_parts_that_is_added(self, x: torch.Tensor) -> torch.Tensor:
        return self.add(self.ops.linear(self.norm(x), self.mixed), x)

    def gates_that_are_added(self, x: torch.Tensor) -> torch.Tensor:
        return self.add(self.ops.gated_linear(self.norm(x), self.gates, "gelu_tanh"), x)

    def rows_of_a_token_table(self, x: torch.Tensor) -> torch.Tensor:
        return x


PASSES = [name for name in vars(Calls) if name.startswith(("a_", "norms_", "gates_", "rows_"))]


@pytest.mark.parametrize("name", PASSES)
def test_folding_leaves_results_alone(name: str) -> None:
    ops = GuardedOps(torch.float32, 1, "")
    calls = Calls(ops)
    runs = Runs(ops, lambda ids, batch, kv: getattr(calls, name)(calls.start(ids)))
    for count in (1, 5):
        runs.assert_same(token_ids(count), scattered_step([0], [count], 16, 1))


@pytest.mark.parametrize("seed", range(60))
def test_passes_of_random_calls(seed: int) -> None:
    """Each call reads some of the last few tensors: whatever may be folded or share memory does."""
    ops = GuardedOps(torch.float32, 1, "")
    calls = Calls(ops)

    def forward(ids: torch.Tensor, batch: AttentionBatch, kv: list[KVLayer]) -> torch.Tensor:
        draw, rows = random.Random(seed), [calls.start(ids)]
        for _ in range(draw.randrange(4, 16)):
            x, other = draw.choice(rows[-3:]), draw.choice(rows[-4:])
            kind = draw.choice(["norm", "norm", "linear", "linear", "add", "add", "gated"])
            if kind == "norm":
                rows.append(calls.norm(x, draw.randrange(3)))
            elif kind == "linear":
                rows.append(calls.linear(x, draw.randrange(3)))
            elif kind == "add":
                rows.append(calls.add(x, other, draw.randrange(3)))
            else:
                rows.append(ops.gated_linear(x, calls.gates, "silu"))
        return draw.choice(rows[-3:])

    runs = Runs(ops, forward)
    for count in (2, 7):
        runs.assert_same(token_ids(count), scattered_step([0], [count], 16, 1))


def test_a_norm_of_all_keys_is_no_norm_of_each_head() -> None:
    ops = GuardedOps(torch.float32, 1, "")
    layers = Layers(ops, ["f32", "f32", "f32"], head_norms=False)
    weights = drawn(2, HEADS * DIM, seed=3) + 1

    def forward(ids: torch.Tensor, batch: AttentionBatch, kv: list[KVLayer]) -> torch.Tensor:
        q, k, v = torch.split(ops.linear(ops.embedding(ids, layers.table), layers.qkv), QKV, dim=1)
        q, k = ops.rms_norm(q, weights[0], EPS), ops.rms_norm(k, weights[1, : KV_HEADS * DIM], EPS)
        q, k, v = (part.view(len(ids), -1, DIM) for part in (q, k, v))
        q = ops.rotary_and_cache(q, k, v, layers.rotary, batch, kv[0])
        return ops.paged_attention(q, batch, kv[0], layers.spec).flatten(1)

    Runs(ops, forward).assert_same(token_ids(9), scattered_step([0], [9], 16, 1))


def test_head_norms_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where queries and keys have epsilons of their own."""
    ops = GuardedOps(torch.float32, 1, "")
    layers = Layers(ops, ["f32", "f32", "f32"])

    def forward(ids: torch.Tensor, batch: AttentionBatch, kv: list[KVLayer]) -> torch.Tensor:
        q, k, v = torch.split(ops.linear(ops.embedding(ids, layers.table), layers.qkv), QKV, dim=1)
        q = ops.rms_norm(q.view(len(ids), -1, DIM), layers.heads[0], 0.5)
        k = ops.rms_norm(k.view(len(ids), -1, DIM), layers.heads[1], EPS, True)
        q = ops.rotary_and_cache(q, k, v.view(len(ids), -1, DIM), layers.rotary, batch, kv[0])
        return ops.paged_attention(q, batch, kv[0], layers.spec).flatten(1)

    Runs(ops, forward).assert_same(token_ids(9), scattered_step([0], [9], 16, 1))


def test_rows_that_no_recorded_call_made_are_refused() -> None:
    ops = CpuOps(torch.float32, 1)
    calls = Calls(ops)
    with pytest.raises(ValueError, match="linear uses rows as 'input' that no recorded operation made"):
        ops.prepare_forward(lambda ids, batch, kv: calls.linear(calls.start(ids).clone()), [], LIMITS)
