"""Attention of single rows (decoding) over the page pool, with the keys split over programs.

    items i of attention_plan.DecodeWork, key heads h: a program each
        q [G, D]: the query heads that share h, padded to 16 rows: a tensor-core tile
        tiles of TILE positions of the split, page by page:
            k [TILE, D] -> scores [G, TILE] -> running maximum, sum and v-weighted sum (online softmax, base 2)
        partials: acc float32 [I, Hq, D], maximum and sum float32 [I, Hq, 2]
    decoding sequences d, query heads: a program each
        partials starts[d] : starts[d + 1], JOIN at a time -> out [T, Hq, D]

    pool: a layer's keys (and values) lie at base + block * block_stride + (slot * Hk + head) * D + dim

Splits are at fixed positions and partials are joined in runs of JOIN from the sequence's first, so the sums of a row depend on its
sequence alone. The method is flash-decoding (Dao et al., 2023).
"""

# Triton's functions have no types; arguments of kernels cannot have any that mypy knows.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.ops.cuda.attention_plan import SPLIT
from octavo.ops.cuda.launch import early_launch
from octavo.ops.cuda.variants import Variant

JOIN = 16
"""Partials that the joining kernel takes at once: all of a sequence of 4,096 tokens."""

LOG2_E = 1.4426950408889634

_LEAST_ROWS = 16
"""Rows of the smallest tensor-core tile."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How a kernel is cut.

    Attributes:
        tile: positions whose keys are taken at a time.
        warps, stages: of a program, and tiles under way from memory.
    """

    tile: int
    warps: int
    stages: int


def decode_launch(head_dim: int, itemsize: int) -> Launch:
    """For heads of ``head_dim`` values of ``itemsize`` bytes each."""
    if itemsize == 4 or head_dim > 128:
        return Launch(32, 4, 2)
    return Launch(128, 4, 3)


@dataclass(frozen=True, slots=True)
class DecodeItems:
    """``DecodeWork`` on the device, and room for the partial results.

    Attributes:
        sequences, starts, owners, splits: int32; an owner of -1 is no work (a graph's padding).
        partials: float32 [items, Hq, D].
        stats: float32 [items, Hq, 2], maxima and sums.
    """

    sequences: torch.Tensor
    starts: torch.Tensor
    owners: torch.Tensor
    splits: torch.Tensor
    partials: torch.Tensor
    stats: torch.Tensor


def decode_attention(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    out: torch.Tensor,
    query_starts: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    items: DecodeItems,
    scale: float,
    window: int | None,
    softcap: float | None,
    launch: Launch | None = None,
) -> None:
    """Attend from the rows of the decoding sequences and write theirs of ``out``.

    Args:
        q: [T, Hq, D], heads side by side in a row.
        keys, values: [blocks, block size, Hk, D], strided over blocks.
        out: [T, Hq, D], contiguous; other rows are left alone.
        query_starts: int32 [S + 1]. context_lens: int32 [S]. block_tables: int32 [S, most blocks].
        scale, window, softcap: see ``AttentionSpec``.
        launch: how the kernel is cut; the table's choice when None.
    """
    _, heads, dim = q.shape
    block_size, kv_heads = keys.shape[1], keys.shape[2]
    group = heads // kv_heads
    launch = launch or decode_launch(dim, keys.element_size())
    padded = triton.next_power_of_2(dim)
    _split_kernel[(items.owners.shape[0], kv_heads)](
        q,
        keys,
        values,
        items.sequences,
        items.owners,
        items.splits,
        query_starts,
        context_lens,
        block_tables,
        items.partials,
        items.stats,
        q.stride(0),
        keys.stride(0),
        block_tables.stride(0),
        scale / softcap if softcap else 1.0,
        (softcap or scale) * LOG2_E,
        HEADS=heads,
        KV_HEADS=kv_heads,
        GROUP=group,
        ROWS=max(_LEAST_ROWS, triton.next_power_of_2(group)),
        DIM=dim,
        PADDED=padded,
        BLOCK_SIZE=block_size,
        TILE=min(launch.tile, SPLIT),
        SPLIT=SPLIT,
        WINDOW=window or 0,
        CAPPED=softcap is not None,
        EARLY=early_launch(items.sequences.shape[0]),
        num_warps=launch.warps,
        num_stages=launch.stages,
        launch_pdl=early_launch(items.sequences.shape[0]),
    )
    _join_kernel[(items.sequences.shape[0], heads)](
        items.partials,
        items.stats,
        items.sequences,
        items.starts,
        query_starts,
        out,
        HEADS=heads,
        DIM=dim,
        PADDED=padded,
        JOIN=JOIN,
        EARLY=early_launch(items.sequences.shape[0]),
        num_warps=4,
        launch_pdl=early_launch(items.sequences.shape[0]),
    )


@triton.jit(do_not_specialize=["table_stride"])
def _split_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    sequences_ptr,
    owners_ptr,
    splits_ptr,
    query_starts_ptr,
    context_lens_ptr,
    tables_ptr,
    partials_ptr,
    stats_ptr,
    q_stride,
    block_stride,
    table_stride,
    inner_scale,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    EARLY: tl.constexpr,
):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    item = tl.program_id(0)
    kv_head = tl.program_id(1)
    owner = tl.load(owners_ptr + item)
    if owner < 0:
        return
    sequence = tl.load(sequences_ptr + owner)
    split = tl.load(splits_ptr + item)
    context = tl.load(context_lens_ptr + sequence)
    row = tl.load(query_starts_ptr + sequence).to(tl.int64)
    members = tl.arange(0, ROWS)
    dims = tl.arange(0, PADDED)
    heads = kv_head * GROUP + members
    q_mask = (members < GROUP)[:, None] & (dims < DIM)[None, :]
    q = tl.load(q_ptr + row * q_stride + heads[:, None] * DIM + dims[None, :], mask=q_mask, other=0.0)

    first = 0
    if WINDOW > 0:
        first = tl.maximum(context - WINDOW, 0)
    begin = split * SPLIT
    end = tl.minimum(begin + SPLIT, context)
    table_ptr = tables_ptr + sequence.to(tl.int64) * table_stride
    head_offset = kv_head * DIM
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, PADDED], tl.float32)
    for start in range(begin, end, TILE):
        positions = start + tl.arange(0, TILE)
        live = positions < end
        if WINDOW > 0:
            live = live & (positions >= first)
        blocks = tl.load(table_ptr + positions // BLOCK_SIZE, mask=live, other=0).to(tl.int64)
        rows = blocks * block_stride + (positions % BLOCK_SIZE) * (KV_HEADS * DIM) + head_offset
        mask = live[:, None] & (dims < DIM)[None, :]
        k = tl.load(k_ptr + rows[:, None] + dims[None, :], mask=mask, other=0.0).to(q.dtype)
        v = tl.load(v_ptr + rows[:, None] + dims[None, :], mask=mask, other=0.0).to(q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if CAPPED:
            scores = 2.0 * tl.sigmoid(2.0 * scores * inner_scale) - 1.0
        scores = tl.where(live[None, :], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        # A tile of nothing but hidden keys leaves the maximum at -inf: its weights are 0, not exp(nan).
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        # Differences come first: equal maxima then shrink by exactly 1, and no multiply-add is fused in one place and not in another.
        weights = tl.exp2((scores - safe[:, None]) * scale)
        shrink = tl.exp2((best - safe) * scale)
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None]
        acc = tl.dot(weights.to(q.dtype), v, acc, input_precision="ieee")
        best = higher

    place = item.to(tl.int64) * HEADS + heads
    tl.store(partials_ptr + place[:, None] * DIM + dims[None, :], acc, mask=q_mask)
    tl.store(stats_ptr + place * 2, best * scale, mask=members < GROUP)
    tl.store(stats_ptr + place * 2 + 1, total, mask=members < GROUP)


@triton.jit
def _join_kernel(
    partials_ptr,
    stats_ptr,
    sequences_ptr,
    starts_ptr,
    query_starts_ptr,
    out_ptr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    JOIN: tl.constexpr,
    EARLY: tl.constexpr,
):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    owner = tl.program_id(0)
    head = tl.program_id(1)
    begin = tl.load(starts_ptr + owner)
    end = tl.load(starts_ptr + owner + 1)
    sequence = tl.load(sequences_ptr + owner)
    row = tl.load(query_starts_ptr + sequence).to(tl.int64)
    dims = tl.arange(0, PADDED)
    best = float("-inf")
    total = 0.0
    acc = tl.zeros([PADDED], tl.float32)
    for start in range(begin, end, JOIN):
        items = start + tl.arange(0, JOIN)
        live = items < end
        place = items.to(tl.int64) * HEADS + head
        maxima = tl.load(stats_ptr + place * 2, mask=live, other=float("-inf"))
        sums = tl.load(stats_ptr + place * 2 + 1, mask=live, other=0.0)
        partials = tl.load(partials_ptr + place[:, None] * DIM + dims[None, :], mask=live[:, None] & (dims < DIM)[None, :], other=0.0)
        higher = tl.maximum(best, tl.max(maxima, 0))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        factors = tl.exp2(maxima - safe)
        shrink = tl.exp2(best - safe)
        total = total * shrink + tl.sum(sums * factors, 0)
        acc = acc * shrink + tl.sum(partials * factors[:, None], 0)
        best = higher
    # A graph's padding has no items and no keys; its row is written, so that nothing unwritten is read later.
    result = acc / tl.where(total > 0.0, total, 1.0)
    tl.store(out_ptr + (row * HEADS + head) * DIM + dims, result.to(out_ptr.dtype.element_ty), mask=dims < DIM)


def variants() -> Iterator[Variant]:
    """The forms of Llama 3 (also with an 8-bit cache), Llama 2, Gemma 2 and SmolLM2."""
    int32s = ("sequences_ptr", "owners_ptr", "splits_ptr", "query_starts_ptr", "context_lens_ptr", "tables_ptr")
    shapes = [
        ("llama3", 32, 8, 128, 0, False, "bf16"),
        ("llama3_fp8", 32, 8, 128, 0, False, "fp8e4nv"),
        ("llama2", 32, 32, 128, 0, False, "fp16"),
        ("gemma2", 8, 4, 256, 4096, True, "bf16"),
        ("smollm2", 9, 3, 64, 0, False, "bf16"),
        ("float32", 9, 3, 64, 0, False, "fp32"),
    ]
    for name, heads, kv_heads, dim, window, capped, kind in shapes:
        compute = "bf16" if kind == "fp8e4nv" else kind
        launch = decode_launch(dim, {"fp32": 4, "fp8e4nv": 1}.get(kind, 2))
        yield Variant(
            f"decode_split_{name}",
            _split_kernel,
            {"q_ptr": f"*{compute}", "k_ptr": f"*{kind}", "v_ptr": f"*{kind}"}
            | dict.fromkeys(int32s, "*i32")
            | {"partials_ptr": "*fp32", "stats_ptr": "*fp32", "q_stride": "i32", "block_stride": "i32", "table_stride": "i32"}
            | {"inner_scale": "fp32", "scale": "fp32"},
            {
                "HEADS": heads,
                "KV_HEADS": kv_heads,
                "GROUP": heads // kv_heads,
                "ROWS": max(_LEAST_ROWS, triton.next_power_of_2(heads // kv_heads)),
                "DIM": dim,
                "PADDED": triton.next_power_of_2(dim),
                "BLOCK_SIZE": 16,
                "TILE": launch.tile,
                "SPLIT": SPLIT,
                "WINDOW": window,
                "CAPPED": capped,
                "EARLY": True,
            },
            launch.warps,
            launch.stages,
            ("q_ptr", "k_ptr", "v_ptr", "partials_ptr", "stats_ptr", "q_stride", "block_stride"),
        )
    yield Variant(
        "decode_join_llama3",
        _join_kernel,
        {"partials_ptr": "*fp32", "stats_ptr": "*fp32", "out_ptr": "*bf16"}
        | dict.fromkeys(("sequences_ptr", "starts_ptr", "query_starts_ptr"), "*i32"),
        {"HEADS": 32, "DIM": 128, "PADDED": 128, "JOIN": JOIN, "EARLY": True},
        aligned=("partials_ptr", "stats_ptr", "out_ptr"),
    )
