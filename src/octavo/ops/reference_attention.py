"""Paged attention in plain torch: gather each sequence's keys and values from the pool, then dense attention.

Sequences with one query row (decoding) are computed together, padded to a common length; to bound the padding they are grouped
by length. Sequences with more rows (prompt chunks) are computed one by one, in tiles of rows. Only tokens that a query may see
are ever gathered: a padded place repeats a token of its own sequence and is masked, so nothing unwritten is read.

A row's bits must not depend on the rest of the batch nor on how a prompt is cut. Torch's fused attention walks the keys in runs
of 512 from the first one given, in vectors within a run, and multiplies in another way where there are few rows. So keys always
start at a multiple of 512 and end at a multiple of ``_key_multiple``, a tile is one pass of the kernel, and has ``_least_rows``
rows. With torch's AVX-512 kernels this makes float32 and bfloat16 exact, and tests hold it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from octavo.ops.base import AttentionBatch, AttentionSpec, KVLayer
from octavo.ops.workspace import ATTENTION_GATHER_BYTES, QUERY_TILE_ROWS

FREE_PADDING = 512
"""Padded places a group may have whatever its size: about what the calls for one more group cost."""

KEY_RUN = 512
"""Keys that torch's fused attention takes at a time on a CPU."""


@dataclass(slots=True)
class TorchKVLayer(KVLayer):
    """One layer's view of the page pool.

    Attributes:
        keys, values: [blocks, block size, Hk, D]; strided over the blocks of the pool, contiguous within one.
    """

    keys: torch.Tensor
    values: torch.Tensor


@dataclass(slots=True)
class _DecodeGroup:
    """Sequences with one query row each.

    Attributes:
        size, length: sequences, and places for each one's keys.
        rows: int64 [size], their rows of the batch; None when they are all of it, in order.
        slots: int64 [size * length], the pool rows to gather.
        mask: [size, 1, 1, length] added to the scores.
    """

    size: int
    length: int
    rows: torch.Tensor | None
    slots: torch.Tensor
    mask: torch.Tensor


@dataclass(slots=True)
class _Chunk:
    """One sequence with several query rows.

    Attributes:
        slots: int64 [places], the pool rows to gather.
        tiles: of its rows.
    """

    slots: torch.Tensor
    tiles: list[_Tile]


@dataclass(slots=True)
class _Tile:
    """Some rows of a chunk.

    Attributes:
        rows: of the batch; ``keys``: places of the chunk's slots.
        first_key: position of the first key, counted from the first row's.
    """

    rows: slice
    keys: slice
    first_key: int


@dataclass(slots=True)
class _Plan:
    """A step's attention for one window.

    Attributes:
        band: [tile rows, keys] added to the scores of a tile. Whether a row sees a key depends on the distance of their positions
            only, so one mask serves all tiles; its first column is ``band_start`` positions from a tile's first row.
    """

    groups: list[_DecodeGroup]
    chunks: list[_Chunk]
    band: torch.Tensor
    band_start: int


def paged_attention(q: torch.Tensor, batch: AttentionBatch, kv: TorchKVLayer, spec: AttentionSpec) -> torch.Tensor:
    """See ``Ops.paged_attention``."""
    key = ("attention", spec.window)
    if key not in batch.plans:
        batch.plans[key] = _plan(batch, kv, spec, q.dtype)
    plan: _Plan = batch.plans[key]
    if len(plan.groups) == 1 and plan.groups[0].rows is None:
        return _decode(q, plan.groups[0], kv, spec)
    out = torch.empty_like(q)
    for group in plan.groups:
        assert group.rows is not None
        out.index_copy_(0, group.rows, _decode(q.index_select(0, group.rows), group, kv, spec))
    for chunk in plan.chunks:
        _attend_chunk(q, out, chunk, plan, kv, spec)
    return out


def _decode(q: torch.Tensor, group: _DecodeGroup, kv: TorchKVLayer, spec: AttentionSpec) -> torch.Tensor:
    """One row a sequence, [S, Hq, D]. The query heads that share a key head are laid out as that head's query rows."""
    keys, values = _gather(kv, group.slots, q.dtype)
    shape = (group.size, group.length, spec.num_kv_heads, spec.head_dim)
    grouped = q.view(group.size, spec.num_kv_heads, -1, spec.head_dim)
    out = _attend(grouped, keys.view(shape).transpose(1, 2), values.view(shape).transpose(1, 2), group.mask, spec)
    return out.reshape(q.shape)


def _attend_chunk(q: torch.Tensor, out: torch.Tensor, chunk: _Chunk, plan: _Plan, kv: TorchKVLayer, spec: AttentionSpec) -> None:
    """One sequence's rows, written to its rows of ``out`` [T, Hq, D]."""
    shape = (1, -1, spec.num_kv_heads, spec.head_dim)
    keys, values = (gathered.view(shape).transpose(1, 2) for gathered in _gather(kv, chunk.slots, q.dtype))
    for tile in chunk.tiles:
        queries = q[tile.rows].transpose(0, 1).unsqueeze(0)
        column = tile.first_key - plan.band_start
        mask = plan.band[: queries.shape[2], column : column + tile.keys.stop - tile.keys.start]
        attended = _attend(queries, keys[:, :, tile.keys], values[:, :, tile.keys], mask, spec)
        out[tile.rows] = attended.squeeze(0).transpose(0, 1)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """Dense attention of [B, heads, rows, D] over [B, Hk, keys, D]; a capped one has no fused kernel and is spelled out in float32."""
    share, rows = q.shape[1] // k.shape[1], q.shape[2]
    if (missing := _least_rows(q) - rows) > 0:
        q = F.pad(q, (0, 0, 0, missing))
        mask = mask if mask.shape[-2] == 1 else F.pad(mask, (0, 0, 0, missing))
    if spec.softcap is None:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=spec.scale, enable_gqa=share > 1)
        return out[:, :, :rows]
    if share > 1:
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    scores = torch.matmul(q.float(), k.float().transpose(2, 3)).mul_(spec.scale / spec.softcap).tanh_().mul_(spec.softcap)
    return torch.matmul(scores.add_(mask).softmax(dim=-1), v.float()).to(q.dtype)[:, :, :rows]


def _least_rows(q: torch.Tensor) -> int:
    """Rows below which torch's product on the CPU takes another way (measured: in float32 it grows with the head size)."""
    if q.device.type != "cpu":
        return 1
    return max(4, q.shape[-1] // 16) if q.dtype == torch.float32 else 2


def _key_multiple(dtype: torch.dtype) -> int:
    """Keys are padded to a multiple of this, above which the length does not change the sums (measured)."""
    return 256 if dtype == torch.float32 else 16


# ---- the pool as rows ------------------------------------------------------------------------------------------------


def rows_per_block(layer: torch.Tensor) -> int:
    """Rows of Hk * D values from a block's keys to the next block's, in ``TorchKVLayer.keys`` or ``values``."""
    return layer.stride(0) // layer.stride(1)


def row_view(layer: torch.Tensor) -> torch.Tensor:
    """``TorchKVLayer.keys`` or ``values`` as a contiguous matrix of Hk * D values a row.

    A block's first token is at row ``block * rows_per_block``. Rows between blocks belong to other layers. Whole-row
    copies are several times as fast as indexing by block and offset.
    """
    width = layer.stride(1)
    return layer.as_strided(((layer.shape[0] - 1) * rows_per_block(layer) + layer.shape[1], width), (width, 1))


def pool_rows(slots: torch.Tensor, block_size: int, per_block: int) -> torch.Tensor:
    """Rows of ``row_view`` that slots (block id * block size + offset) are at."""
    blocks = slots.div(block_size, rounding_mode="floor")
    return slots + blocks * (per_block - block_size)


def _gather(kv: TorchKVLayer, rows: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values at pool rows, each [len(rows), Hk * D] in ``dtype``."""
    return row_view(kv.keys).index_select(0, rows).to(dtype), row_view(kv.values).index_select(0, rows).to(dtype)


# ---- the plan --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Span:
    """The keys a decoding row needs: positions ``first`` to ``end``, in places from ``start`` on.

    Attributes:
        row, sequence: of the batch.
        length: places, padding included.
    """

    length: int
    row: int
    sequence: int
    start: int
    first: int
    end: int


def _plan(batch: AttentionBatch, kv: TorchKVLayer, spec: AttentionSpec, dtype: torch.dtype) -> _Plan:
    per_block = rows_per_block(kv.keys)
    decoding: list[_Span] = []
    chunks: list[_Chunk] = []
    row = 0
    for sequence, (size, context) in enumerate(zip(batch.query_lens, batch.context_lens_host, strict=True)):
        if size == 1:
            first = _first_key(context - 1, spec.window)
            start = first // KEY_RUN * KEY_RUN
            decoding.append(_Span(_padded_end(context, dtype) - start, row, sequence, start, first, context))
        else:
            chunks.append(_plan_chunk(batch, sequence, row, spec.window, per_block, dtype))
        row += size
    token_bytes = 2 * spec.num_kv_heads * spec.head_dim * dtype.itemsize
    groups = [
        _plan_group(batch, members, per_block, dtype) for members in _group_by_length(decoding, ATTENTION_GATHER_BYTES // token_bytes)
    ]
    if len(groups) == 1 and not chunks:
        groups[0].rows = None
    return _Plan(groups, chunks, *_band([tile for chunk in chunks for tile in chunk.tiles], spec.window, dtype, batch.positions.device))


def _first_key(position: int, window: int | None) -> int:
    """The first position that a row sees."""
    return 0 if window is None else max(0, position - window + 1)


def _padded_end(end: int, dtype: torch.dtype) -> int:
    multiple = _key_multiple(dtype)
    return -(-end // multiple) * multiple


def _group_by_length(spans: list[_Span], most_tokens: int) -> list[list[_Span]]:
    """Split decoding rows so that little is padded and no group's padded size exceeds ``most_tokens``.

    One group keeps the batch's order; several are by falling length.
    """
    if not spans:
        return []
    if _fits(max(span.length for span in spans), len(spans), sum(span.length for span in spans), most_tokens):
        return [spans]
    groups: list[list[_Span]] = []
    tokens = 0
    for span in sorted(spans, key=lambda span: span.length, reverse=True):
        if not groups or not _fits(groups[-1][0].length, len(groups[-1]) + 1, tokens + span.length, most_tokens):
            groups.append([])
            tokens = 0
        groups[-1].append(span)
        tokens += span.length
    return groups


def _fits(longest: int, count: int, tokens: int, most_tokens: int) -> bool:
    """Whether ``count`` sequences of ``tokens`` tokens in all make one group."""
    padded = longest * count
    return count == 1 or (padded <= most_tokens and padded - tokens <= FREE_PADDING + tokens // 8)


def _plan_group(batch: AttentionBatch, spans: list[_Span], per_block: int, dtype: torch.dtype) -> _DecodeGroup:
    device = batch.positions.device
    length = max(span.length for span in spans)
    fields = torch.tensor([(span.start, span.first, span.end, span.row, span.sequence) for span in spans], device=device)
    start, first, end, rows, sequences = fields.unbind(1)
    first, end = first.unsqueeze(1), end.unsqueeze(1)
    places = start.unsqueeze(1) + torch.arange(length, device=device)
    hidden = (places < first) | (places >= end)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)[:, None, None]
    tables = batch.block_tables.index_select(0, sequences).long()
    slots = _pool_rows_at(tables, torch.where(hidden, first, places), batch.block_size, per_block)
    return _DecodeGroup(len(spans), length, rows, slots.view(-1), mask)


def _plan_chunk(batch: AttentionBatch, sequence: int, row: int, window: int | None, per_block: int, dtype: torch.dtype) -> _Chunk:
    size, context = batch.query_lens[sequence], batch.context_lens_host[sequence]
    cached = context - size
    first = _first_key(cached, window)
    start = first // KEY_RUN * KEY_RUN
    places = torch.arange(start, _padded_end(context, dtype), device=batch.positions.device).clamp_(first, context - 1)
    tiles = []
    for begin in range(0, size, QUERY_TILE_ROWS):
        end, position = min(begin + QUERY_TILE_ROWS, size), cached + begin
        tile_start = _first_key(position, window) // KEY_RUN * KEY_RUN
        keys = slice(tile_start - start, _padded_end(cached + end, dtype) - start)
        tiles.append(_Tile(slice(row + begin, row + end), keys, tile_start - position))
    table = batch.block_tables[sequence : sequence + 1].long()
    return _Chunk(_pool_rows_at(table, places.unsqueeze(0), batch.block_size, per_block).view(-1), tiles)


def _pool_rows_at(tables: torch.Tensor, positions: torch.Tensor, block_size: int, per_block: int) -> torch.Tensor:
    """Pool rows of positions [S, n] under block tables [S, blocks]."""
    blocks = tables.gather(1, positions.div(block_size, rounding_mode="floor"))
    return blocks * per_block + positions.remainder(block_size)


def _band(tiles: list[_Tile], window: int | None, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, int]:
    """The mask shared by all tiles, and the position of its first column counted from a tile's first row."""
    start = min((tile.first_key for tile in tiles), default=0)
    stop = max((tile.first_key + tile.keys.stop - tile.keys.start for tile in tiles), default=0)
    rows = torch.arange(max((tile.rows.stop - tile.rows.start for tile in tiles), default=0), device=device).unsqueeze(1)
    keys = torch.arange(start, stop, device=device)
    hidden = keys > rows
    if window is not None:
        hidden |= keys <= rows - window
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf), start
