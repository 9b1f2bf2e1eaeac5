"""A checkpoint as one rank sees it: its own layers, and of their tensors its own rows and columns, cut out where they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from octavo.models.config import ModelConfig
from octavo.models.sharding import Shard
from octavo.quantization.base import StoredTensor, WeightSource

if TYPE_CHECKING:
    import torch

    from octavo.ops.base import BlockWeight


class ShardedSource(WeightSource):
    """The tensors of a rank's part, under its own layers' numbers.

    A product whose columns are shared out is summed over the ranks: its bias is rank 0's alone, the others add zeros.

    Args:
        source: the whole checkpoint.
        config: the whole model's shape.
        shard: the rank's part.
    """

    def __init__(self, source: WeightSource, config: ModelConfig, shard: Shard) -> None:
        self.quantization = source.quantization
        self._source = source
        self._shard = shard
        self._shapes = shard.tensors(config)
        self._config = config

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def __getitem__(self, name: str) -> StoredTensor:
        stored = self._source[self._shard.stored_name(name)]
        rows, columns = self._cut(name)
        if name.endswith((".o_proj.bias", ".down_proj.bias")) and self._shard.rank > 0:
            return _Zeros(stored)
        return stored if rows is None and columns is None else StoredPart(stored, rows or [range(stored.shape[0])], columns)

    def names(self) -> list[str]:
        return list(self._shapes)

    def let_go(self) -> None:
        self._source.let_go()

    def _cut(self, name: str) -> tuple[list[range] | None, range | None]:
        """The rows and the columns that a tensor keeps; None is all."""
        shard, config = self._shard, self._config
        queries, keys = _times(shard.heads, config.head_dim), _times(shard.kv_heads, config.head_dim)
        columns, all_queries, all_keys = shard.columns, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        part = name.rsplit(".", 2)[-2]
        rows: dict[str, list[range]] = {
            "q_proj": [queries],
            "k_proj": [keys],
            "v_proj": [keys],
            "qkv_proj": [queries, _shifted(keys, all_queries), _shifted(keys, all_queries + all_keys)],
            "gate_proj": [columns],
            "up_proj": [columns],
            "gate_up_proj": [columns, _shifted(columns, config.intermediate_size)],
            "embed_tokens": [shard.vocabulary],
            "lm_head": [shard.vocabulary],
        }
        kept = {"o_proj": queries, "down_proj": columns} if name.endswith(".weight") else {}
        return (None, None) if shard.size == 1 else (rows.get(part), kept.get(part))


def _times(things: range, factor: int) -> range:
    return range(things.start * factor, things.stop * factor)


def _shifted(things: range, by: int) -> range:
    return range(things.start + by, things.stop + by)


class StoredPart(StoredTensor):
    """Some rows and columns of a tensor; only they are read.

    Args:
        whole: the tensor.
        rows: runs of its rows, one after the other.
        columns: a run of its columns; None is all.
    """

    def __init__(self, whole: StoredTensor, rows: Sequence[range], columns: range | None) -> None:
        self.name = whole.name
        self.format = whole.format
        width = whole.shape[1:] if columns is None else (len(columns),)
        self.shape = (sum(map(len, rows)), *width)
        self._whole = whole
        self._rows = rows
        self._columns = None if columns is None else slice(columns.start, columns.stop)

    def dense(self, dtype: torch.dtype, rows: slice | None = None, columns: slice | None = None) -> torch.Tensor:
        import torch

        if columns is not None:
            raise ValueError("a part of a tensor is not cut again")
        parts = [self._whole.dense(dtype, piece, self._columns) for piece in self._pieces(rows)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def blocks(self, rows: slice | None = None, columns: slice | None = None) -> BlockWeight | None:
        import numpy as np

        from octavo.ops.base import BlockWeight

        if columns is not None:
            raise ValueError("a part of a tensor is not cut again")
        found = [self._whole.blocks(piece, self._columns) for piece in self._pieces(rows)]
        parts = [part for part in found if part is not None]
        if len(parts) < len(found):
            return None
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        minima = [part.minima for part in parts if part.minima is not None]
        return BlockWeight(
            first.bits,
            np.concatenate([part.values for part in parts]),
            first.zero,
            np.concatenate([part.scales for part in parts]),
            np.concatenate(minima) if minima else None,
        )

    def _pieces(self, rows: slice | None) -> list[slice]:
        """The runs of the whole's rows that rows of this part are."""
        start, stop, step = (rows or slice(None)).indices(self.shape[0])
        if step != 1:
            raise ValueError("rows of a part are read in their order")
        pieces, begin = [], 0
        for run in self._rows:
            first, last = max(start, begin), min(stop, begin + len(run))
            if first < last:
                pieces.append(slice(run.start + first - begin, run.start + last - begin))
            begin += len(run)
        return pieces or [slice(0, 0)]


class _Zeros(StoredTensor):
    """Zeros in the shape of another tensor."""

    def __init__(self, like: StoredTensor) -> None:
        self.name, self.shape, self.format = like.name, like.shape, "F32"

    def dense(self, dtype: torch.dtype, rows: slice | None = None, columns: slice | None = None) -> torch.Tensor:
        import torch

        whole = torch.zeros(self.shape, dtype=dtype)
        return whole[rows or slice(None)] if columns is None else whole[rows or slice(None), columns]
