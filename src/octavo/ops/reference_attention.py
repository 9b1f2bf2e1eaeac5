"""Paged attention in plain torch: gather each sequence's keys and values from the pool, then dense attention.

Sequences with one query row (decoding) are computed together, padded to a common length; to bound the padding they are grouped
by length. Sequences with more rows (prompt chunks) are computed one by one, long ones in tiles of rows. Only tokens that a query
may see are ever gathered: a padded place repeats a token of its own sequence and is masked, so nothing unwritten is read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from octavo.ops.base import AttentionBatch, AttentionSpec, KVLayer

WORKSPACE_BYTES = 64 * 2**20
"""What the gathered keys and values of one group of decoding sequences may take (a lone sequence takes what it needs)."""

FREE_PADDING = 512
"""Padded places a group may have whatever its size: about what the calls for one more group cost."""

TILE_ROWS = 256
SOFTCAP_TILE_ROWS = 64
"""Query rows of a prompt chunk computed at once; fewer with a softcap, whose float32 scores exist in memory."""


@dataclass(slots=True)
class _DecodeGroup:
    """Sequences with one query row each.

    Attributes:
        rows: int64 [S], their rows of the batch; None when they are all of it, in order.
        slots: int64 [S * length], the pool rows to gather.
        mask: [S, 1, 1, length] added to the scores; None without padding.
    """

    size: int
    length: int
    rows: torch.Tensor | None
    slots: torch.Tensor
    mask: torch.Tensor | None


@dataclass(slots=True)
class _Chunk:
    """One sequence with several query rows.

    Attributes:
        first: its first row of the batch; ``size``: its rows.
        slots: int64 [visible keys], the pool rows to gather: positions ``start`` up to the last row's.
        tiles: (rows begin, rows end, keys begin, keys end), counted from ``first`` and ``start``; a single tile when ``causal``.
        causal: rows and keys are the same tokens and no window cuts: plain causal attention without a mask.
    """

    first: int
    size: int
    slots: torch.Tensor
    tiles: list[tuple[int, int, int, int]]
    causal: bool


@dataclass(slots=True)
class _Plan:
    """A step's attention for one window.

    Attributes:
        band: [tile rows, keys] added to the scores of a tile, aligned at its last row and key: whether a query sees a key depends
            on how far each is from the tile's end only, so one mask serves all tiles.
    """

    groups: list[_DecodeGroup]
    chunks: list[_Chunk]
    band: torch.Tensor | None


def paged_attention(q: torch.Tensor, batch: AttentionBatch, kv: KVLayer, spec: AttentionSpec) -> torch.Tensor:
    """See ``Ops.paged_attention``."""
    key = ("attention", spec.window, spec.softcap is None)
    if key not in batch.plans:
        batch.plans[key] = _plan(batch, kv, spec, q.dtype)
    plan: _Plan = batch.plans[key]
    if len(plan.groups) == 1 and not plan.chunks and plan.groups[0].rows is None:
        return _decode(q, plan.groups[0], kv, spec)
    out = torch.empty_like(q)
    for group in plan.groups:
        assert group.rows is not None
        out.index_copy_(0, group.rows, _decode(q.index_select(0, group.rows), group, kv, spec))
    for chunk in plan.chunks:
        _attend_chunk(q, out, chunk, plan.band, kv, spec)
    return out


def _decode(q: torch.Tensor, group: _DecodeGroup, kv: KVLayer, spec: AttentionSpec) -> torch.Tensor:
    """One row a sequence, [S, Hq, D]. The query heads that share a key head are laid out as that head's query rows."""
    keys, values = _gather(kv, group.slots, q.dtype)
    shape = (group.size, group.length, spec.num_kv_heads, spec.head_dim)
    grouped = q.view(group.size, spec.num_kv_heads, -1, spec.head_dim)
    out = _attend(grouped, keys.view(shape).transpose(1, 2), values.view(shape).transpose(1, 2), group.mask, False, spec)
    return out.reshape(q.shape)


def _attend_chunk(q: torch.Tensor, out: torch.Tensor, chunk: _Chunk, band: torch.Tensor | None, kv: KVLayer, spec: AttentionSpec) -> None:
    """One sequence's rows, written to its rows of ``out`` [T, Hq, D]."""
    shape = (1, -1, spec.num_kv_heads, spec.head_dim)
    keys, values = (gathered.view(shape).transpose(1, 2) for gathered in _gather(kv, chunk.slots, q.dtype))
    for begin, end, first_key, last_key in chunk.tiles:
        rows = slice(chunk.first + begin, chunk.first + end)
        mask = None
        if not chunk.causal:
            assert band is not None
            mask = band[band.shape[0] - (end - begin) :, band.shape[1] - (last_key - first_key) :]
        queries = q[rows].transpose(0, 1).unsqueeze(0)
        tile = _attend(queries, keys[:, :, first_key:last_key], values[:, :, first_key:last_key], mask, chunk.causal, spec)
        out[rows] = tile.squeeze(0).transpose(0, 1)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, causal: bool, spec: AttentionSpec
) -> torch.Tensor:
    """Dense attention of [B, heads, rows, D] over [B, Hk, keys, D]; a capped one has no fused kernel and is spelled out in float32."""
    share = q.shape[1] // k.shape[1]
    if spec.softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=spec.scale, enable_gqa=share > 1)
    if share > 1:
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    scores = torch.matmul(q.float(), k.float().transpose(2, 3)).mul_(spec.scale / spec.softcap).tanh_().mul_(spec.softcap)
    if mask is not None:
        scores.add_(mask)
    return torch.matmul(scores.softmax(dim=-1), v.float()).to(q.dtype)


# ---- the pool as rows ------------------------------------------------------------------------------------------------


def rows_per_block(layer: torch.Tensor) -> int:
    """Rows of Hk * D values from a block's keys to the next block's, in ``KVLayer.keys`` or ``values``."""
    return layer.stride(0) // layer.stride(1)


def row_view(layer: torch.Tensor) -> torch.Tensor:
    """``KVLayer.keys`` or ``values`` as a contiguous matrix of Hk * D values a row.

    A block's first token is at row ``block * rows_per_block``. Rows between blocks belong to other layers. Whole-row
    copies are several times as fast as indexing by block and offset.
    """
    width = layer.stride(1)
    return layer.as_strided(((layer.shape[0] - 1) * rows_per_block(layer) + layer.shape[1], width), (width, 1))


def pool_rows(slots: torch.Tensor, block_size: int, per_block: int) -> torch.Tensor:
    """Rows of ``row_view`` that slots (block id * block size + offset) are at."""
    blocks = slots.div(block_size, rounding_mode="floor")
    return slots + blocks * (per_block - block_size)


def _gather(kv: KVLayer, rows: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values at pool rows, each [len(rows), Hk * D] in ``dtype``."""
    return row_view(kv.keys).index_select(0, rows).to(dtype), row_view(kv.values).index_select(0, rows).to(dtype)


# ---- the plan --------------------------------------------------------------------------------------------------------


def _plan(batch: AttentionBatch, kv: KVLayer, spec: AttentionSpec, dtype: torch.dtype) -> _Plan:
    per_block = rows_per_block(kv.keys)
    tile_rows = TILE_ROWS if spec.softcap is None else SOFTCAP_TILE_ROWS
    decoding: list[tuple[int, int, int]] = []
    chunks: list[_Chunk] = []
    first = 0
    for sequence, (size, context) in enumerate(zip(batch.query_lens, batch.context_lens_host, strict=True)):
        if size == 1:
            decoding.append((min(context, spec.window or context), first, sequence))
        else:
            chunks.append(_plan_chunk(batch, sequence, first, spec, tile_rows, per_block))
        first += size
    token_bytes = 2 * spec.num_kv_heads * spec.head_dim * dtype.itemsize
    groups = [_plan_group(batch, members, per_block, dtype) for members in _group_by_length(decoding, WORKSPACE_BYTES // token_bytes)]
    if len(groups) == 1 and not chunks:
        groups[0].rows = None
    return _Plan(groups, chunks, _band(chunks, spec.window, dtype))


def _group_by_length(sequences: list[tuple[int, int, int]], most_tokens: int) -> list[list[tuple[int, int, int]]]:
    """Split (length, row, sequence) entries so that little is padded and no group's padded size exceeds ``most_tokens``.

    One group keeps the batch's order; several are by falling length.
    """
    if not sequences:
        return []
    longest, total = max(sequences)[0], sum(entry[0] for entry in sequences)
    if _fits(longest, len(sequences), total, most_tokens):
        return [sequences]
    groups: list[list[tuple[int, int, int]]] = []
    tokens = 0
    for entry in sorted(sequences, reverse=True):
        if not groups or not _fits(groups[-1][0][0], len(groups[-1]) + 1, tokens + entry[0], most_tokens):
            groups.append([])
            tokens = 0
        groups[-1].append(entry)
        tokens += entry[0]
    return groups


def _fits(longest: int, count: int, tokens: int, most_tokens: int) -> bool:
    """Whether ``count`` sequences of ``tokens`` tokens in all make one group."""
    padded = longest * count
    return count == 1 or (padded <= most_tokens and padded - tokens <= FREE_PADDING + tokens // 8)


def _plan_group(batch: AttentionBatch, members: list[tuple[int, int, int]], per_block: int, dtype: torch.dtype) -> _DecodeGroup:
    lengths, rows, sequences = zip(*members, strict=True)
    device = batch.block_tables.device
    ends = torch.tensor([batch.context_lens_host[sequence] for sequence in sequences], device=device).unsqueeze(1)
    starts = ends - torch.tensor(lengths, device=device).unsqueeze(1)
    length = max(lengths)
    positions = starts + torch.arange(length, device=device)
    mask = None
    if min(lengths) < length:
        hidden = positions >= ends
        positions = torch.where(hidden, starts, positions)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)[:, None, None]
    tables = batch.block_tables.index_select(0, torch.tensor(sequences, device=device)).long()
    blocks = tables.gather(1, positions.div(batch.block_size, rounding_mode="floor"))
    slots = blocks * per_block + positions.remainder(batch.block_size)
    return _DecodeGroup(len(members), length, torch.tensor(rows, device=device), slots.view(-1), mask)


def _plan_chunk(batch: AttentionBatch, sequence: int, first: int, spec: AttentionSpec, tile_rows: int, per_block: int) -> _Chunk:
    size, context = batch.query_lens[sequence], batch.context_lens_host[sequence]
    cached, window = context - size, spec.window or context
    start = max(0, cached + 1 - window)
    positions = torch.arange(start, context, device=batch.block_tables.device)
    blocks = batch.block_tables[sequence].long().index_select(0, positions.div(batch.block_size, rounding_mode="floor"))
    slots = blocks * per_block + positions.remainder(batch.block_size)
    if cached == 0 and window >= context and spec.softcap is None:
        return _Chunk(first, size, slots, [(0, size, 0, context)], True)
    tiles = []
    for begin in range(0, size, tile_rows):
        end = min(begin + tile_rows, size)
        first_key = max(0, cached + begin + 1 - window)
        tiles.append((begin, end, first_key - start, cached + end - start))
    return _Chunk(first, size, slots, tiles, False)


def _band(chunks: list[_Chunk], window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
    """The mask shared by the tiles of all chunks; None where no tile needs one."""
    tiles = [tile for chunk in chunks if not chunk.causal for tile in chunk.tiles]
    if not tiles:
        return None
    device = chunks[0].slots.device
    rows = max(end - begin for begin, end, _, _ in tiles)
    keys = max(last_key - first_key for _, _, first_key, last_key in tiles)
    row_from_end = torch.arange(rows - 1, -1, -1, device=device).unsqueeze(1)
    key_from_end = torch.arange(keys - 1, -1, -1, device=device)
    hidden = key_from_end < row_from_end
    if window is not None:
        hidden |= key_from_end >= row_from_end + window
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
