"""Attention of prompt chunks over the page pool.

    tiles n of attention_plan.PrefillWork, query heads: a program each
        q [rows, D]: rows of one sequence, one head
        tiles of KEYS positions from the first that a row sees up to the last row's own, page by page:
            k [KEYS, D] -> scores [rows, KEYS] -> running maximum, sum and v-weighted sum (online softmax, base 2)
        out [T, Hq, D]

    pool: a layer's keys (and values) lie at base + block * block_stride + (slot * Hk + head) * D + dim

Keys are walked in tiles at fixed positions, and a tile that a row sees nothing of changes nothing of its sums: they do not depend on how
a prompt is cut into chunks. The chunk's own keys are read from the pool too: they are written before, and a cached prefix looks the same.
The method is FlashAttention-2 (Dao, 2023). Without a window, tiles before the first row's own position need no mask.
"""

# Triton's functions have no types; arguments of kernels cannot have any that mypy knows.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.ops.cuda.attention_decode import LOG2_E
from octavo.ops.cuda.launch import has_large_tiles
from octavo.ops.cuda.variants import Variant


@dataclass(frozen=True, slots=True)
class Launch:
    """How the kernel is cut.

    Attributes:
        rows: of a tile.
        keys: positions taken at a time.
        warps, stages: of a program, and tiles under way from memory.
    """

    rows: int
    keys: int
    warps: int
    stages: int


def prefill_launch(head_dim: int, itemsize: int) -> Launch:
    """For heads of ``head_dim`` values of ``itemsize`` bytes each in the products."""
    if itemsize == 4:
        return Launch(32, 32, 4, 1)
    if has_large_tiles():
        return Launch(128, 128, 8, 2) if head_dim <= 128 else Launch(128, 32, 8, 2)
    return Launch(128, 32, 8, 2) if head_dim <= 128 else Launch(64, 32, 8, 2)


@dataclass(frozen=True, slots=True)
class PrefillTiles:
    """``PrefillWork`` on the device: int32 [N] each; the rows of a tile are those of ``prefill_launch``."""

    sequences: torch.Tensor
    rows: torch.Tensor


def prefill_attention(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    out: torch.Tensor,
    query_starts: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    tiles: PrefillTiles,
    scale: float,
    window: int | None,
    softcap: float | None,
    launch: Launch | None = None,
) -> None:
    """Attend from the rows of chunks and write theirs of ``out``; arguments as of ``attention_decode.decode_attention``."""
    _, heads, dim = q.shape
    block_size, kv_heads = keys.shape[1], keys.shape[2]
    launch = launch or prefill_launch(dim, q.element_size())
    _tile_kernel[(tiles.sequences.shape[0], heads)](
        q,
        keys,
        values,
        out,
        tiles.sequences,
        tiles.rows,
        query_starts,
        context_lens,
        block_tables,
        q.stride(0),
        keys.stride(0),
        block_tables.stride(0),
        scale / softcap if softcap else 1.0,
        (softcap or scale) * LOG2_E,
        HEADS=heads,
        KV_HEADS=kv_heads,
        DIM=dim,
        PADDED=triton.next_power_of_2(dim),
        BLOCK_SIZE=block_size,
        ROWS=launch.rows,
        KEYS=launch.keys,
        WINDOW=window or 0,
        CAPPED=softcap is not None,
        num_warps=launch.warps,
        num_stages=launch.stages,
    )


@triton.jit
def _take_keys(
    q,
    best,
    total,
    acc,
    start,
    begin,
    end,
    row_positions,
    k_ptr,
    v_ptr,
    table_ptr,
    block_stride,
    head_offset,
    inner_scale,
    scale,
    SLOT_STRIDE: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    MASKED: tl.constexpr,
):
    """One tile of keys, of those from ``begin`` to ``end``, into the running sums; without ``MASKED`` every row sees all of it."""
    dims = tl.arange(0, PADDED)
    positions = start + tl.arange(0, KEYS)
    live = (positions >= begin) & (positions < end)
    if MASKED:
        blocks = tl.load(table_ptr + positions // BLOCK_SIZE, mask=live, other=0).to(tl.int64)
    else:
        blocks = tl.load(table_ptr + positions // BLOCK_SIZE).to(tl.int64)
    rows = blocks * block_stride + (positions % BLOCK_SIZE) * SLOT_STRIDE + head_offset
    if MASKED:
        mask = live[:, None] & (dims < DIM)[None, :]
        k = tl.load(k_ptr + rows[:, None] + dims[None, :], mask=mask, other=0.0).to(q.dtype)
        v = tl.load(v_ptr + rows[:, None] + dims[None, :], mask=mask, other=0.0).to(q.dtype)
    elif PADDED != DIM:
        mask = (dims < DIM)[None, :]
        k = tl.load(k_ptr + rows[:, None] + dims[None, :], mask=mask, other=0.0).to(q.dtype)
        v = tl.load(v_ptr + rows[:, None] + dims[None, :], mask=mask, other=0.0).to(q.dtype)
    else:
        k = tl.load(k_ptr + rows[:, None] + dims[None, :]).to(q.dtype)
        v = tl.load(v_ptr + rows[:, None] + dims[None, :]).to(q.dtype)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if CAPPED:
        scores = 2.0 * tl.sigmoid(2.0 * scores * inner_scale) - 1.0
    if MASKED:
        seen = positions[None, :] <= row_positions[:, None]
        if WINDOW > 0:
            seen = seen & (positions[None, :] > row_positions[:, None] - WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(best, tl.max(scores, 1))
    # A row that has seen no key yet has a maximum of -inf: its weights are 0, not exp(nan).
    safe = tl.where(higher == float("-inf"), 0.0, higher)
    # Differences come first: equal maxima then shrink by exactly 1, and no multiply-add is fused in one place and not in another.
    weights = tl.exp2((scores - safe[:, None]) * scale)
    shrink = tl.exp2((best - safe) * scale)
    total = total * shrink + tl.sum(weights, 1)
    acc = acc * shrink[:, None]
    acc = tl.dot(weights.to(q.dtype), v, acc, input_precision="ieee")
    return higher, total, acc


@triton.jit(do_not_specialize=["table_stride"])
def _tile_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    sequences_ptr,
    rows_ptr,
    query_starts_ptr,
    context_lens_ptr,
    tables_ptr,
    q_stride,
    block_stride,
    table_stride,
    inner_scale,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
):
    tile = tl.program_id(0)
    head = tl.program_id(1)
    sequence = tl.load(sequences_ptr + tile)
    first_row = tl.load(rows_ptr + tile)
    query_start = tl.load(query_starts_ptr + sequence)
    query_len = tl.load(query_starts_ptr + sequence + 1) - query_start
    context = tl.load(context_lens_ptr + sequence)
    cached = context - query_len
    rows = first_row + tl.arange(0, ROWS)
    row_positions = cached + rows
    dims = tl.arange(0, PADDED)
    mask = (rows < query_len)[:, None] & (dims < DIM)[None, :]
    places = (query_start + rows).to(tl.int64)
    q = tl.load(q_ptr + places[:, None] * q_stride + head * DIM + dims[None, :], mask=mask, other=0.0)

    table_ptr = tables_ptr + sequence.to(tl.int64) * table_stride
    head_offset = (head // (HEADS // KV_HEADS)) * DIM
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, PADDED], tl.float32)
    end = tl.minimum(cached + first_row + ROWS, context)
    begin = 0
    masked_from = (cached + first_row + 1) // KEYS * KEYS
    if WINDOW > 0:
        begin = tl.maximum(cached + first_row - WINDOW + 1, 0)
        masked_from = begin // KEYS * KEYS
    else:
        for start in range(0, masked_from, KEYS):
            best, total, acc = _take_keys(
                q, best, total, acc, start, begin, end, row_positions, k_ptr, v_ptr, table_ptr, block_stride, head_offset, inner_scale,
                scale, KV_HEADS * DIM, DIM, PADDED, BLOCK_SIZE, KEYS, WINDOW, CAPPED, False,
            )  # fmt: skip
    for start in range(masked_from, end, KEYS):
        best, total, acc = _take_keys(
            q, best, total, acc, start, begin, end, row_positions, k_ptr, v_ptr, table_ptr, block_stride, head_offset, inner_scale,
            scale, KV_HEADS * DIM, DIM, PADDED, BLOCK_SIZE, KEYS, WINDOW, CAPPED, True,
        )  # fmt: skip
    # Rows of the tile past the sequence's end, which are not stored, may have seen nothing.
    result = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    tl.store(out_ptr + (places[:, None] * HEADS + head) * DIM + dims[None, :], result.to(out_ptr.dtype.element_ty), mask=mask)


def variants() -> Iterator[Variant]:
    """The forms of Llama 3 (also with an 8-bit cache), Gemma 2, Phi-3 and SmolLM2."""
    int32s = ("sequences_ptr", "rows_ptr", "query_starts_ptr", "context_lens_ptr", "tables_ptr")
    shapes = [
        ("llama3", 32, 8, 128, 0, False, "bf16"),
        ("llama3_fp8", 32, 8, 128, 0, False, "fp8e4nv"),
        ("gemma2", 8, 4, 256, 4096, True, "bf16"),
        ("phi3", 32, 32, 96, 2047, False, "fp16"),
        ("smollm2", 9, 3, 64, 0, False, "bf16"),
        ("float32", 9, 3, 64, 0, False, "fp32"),
    ]
    for name, heads, kv_heads, dim, window, capped, kind in shapes:
        compute = "bf16" if kind == "fp8e4nv" else kind
        launch = prefill_launch(dim, 4 if kind == "fp32" else 2)
        yield Variant(
            f"prefill_{name}",
            _tile_kernel,
            {"q_ptr": f"*{compute}", "k_ptr": f"*{kind}", "v_ptr": f"*{kind}", "out_ptr": f"*{compute}"}
            | dict.fromkeys(int32s, "*i32")
            | {"q_stride": "i32", "block_stride": "i32", "table_stride": "i32", "inner_scale": "fp32", "scale": "fp32"},
            {
                "HEADS": heads,
                "KV_HEADS": kv_heads,
                "DIM": dim,
                "PADDED": triton.next_power_of_2(dim),
                "BLOCK_SIZE": 16,
                "ROWS": launch.rows,
                "KEYS": launch.keys,
                "WINDOW": window,
                "CAPPED": capped,
            },
            launch.warps,
            launch.stages,
            ("q_ptr", "k_ptr", "v_ptr", "out_ptr", "q_stride", "block_stride"),
        )
