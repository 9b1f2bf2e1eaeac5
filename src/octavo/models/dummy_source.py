"""Random weights of a model's shape, for measuring and testing without a checkpoint."""

from __future__ import annotations

import hashlib

import torch

from octavo.errors import ModelLoadError
from octavo.models.config import ModelConfig
from octavo.models.expected_tensors import expected_tensors
from octavo.quantization.base import StoredTensor, WeightSource

_DEVIATION = 0.02
_BLOCK_VALUES = 2**20


class DummySource(WeightSource):
    """Every tensor a model of this shape has, filled with small normal numbers that depend on its name and shape alone."""

    def __init__(self, config: ModelConfig) -> None:
        self._shapes = expected_tensors(config)
        self._norm_mean = 0.0 if config.norm_plus_one else 1.0

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def __getitem__(self, name: str) -> StoredTensor:
        if name not in self._shapes:
            raise ModelLoadError(f"a model of this shape has no tensor {name!r}.")
        return _DummyTensor(name, self._shapes[name], self._norm_mean if name.endswith("norm.weight") else 0.0)

    def names(self) -> list[str]:
        return list(self._shapes)


class _DummyTensor(StoredTensor):
    """Normal numbers, made in blocks of rows, each from its own seed, so that any rows can be made without the others."""

    def __init__(self, name: str, shape: tuple[int, ...], mean: float) -> None:
        self.name = name
        self.shape = shape
        self.format = "F32"
        self._mean = mean
        self._row_values = shape[1] if len(shape) > 1 else 1
        self._block_rows = max(1, _BLOCK_VALUES // self._row_values)

    def dense(self, dtype: torch.dtype, rows: slice | None = None) -> torch.Tensor:
        """See ``StoredTensor.dense``."""
        start, stop, step = (rows or slice(None)).indices(self.shape[0])
        wanted = range(start, stop, step)
        if not wanted:
            return torch.empty(0, *self.shape[1:], dtype=dtype)
        first, last = min(wanted[0], wanted[-1]) // self._block_rows, max(wanted[0], wanted[-1]) // self._block_rows
        made = torch.cat([self._block(index).to(dtype) for index in range(first, last + 1)])
        offset = first * self._block_rows
        if step == 1:
            return made[start - offset : stop - offset].clone()
        return made[torch.tensor(wanted) - offset]

    def _block(self, index: int) -> torch.Tensor:
        """float32 [block rows, ...]: the rows from ``index`` * block rows on."""
        rows = min(self._block_rows, self.shape[0] - index * self._block_rows)
        seed = hashlib.sha256(f"{self.name}:{index}".encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(seed, "little") >> 1)
        return torch.empty(rows, *self.shape[1:]).normal_(self._mean, _DEVIATION, generator=generator)
