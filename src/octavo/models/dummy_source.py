"""Random weights of a model's shape, for measuring and testing without a checkpoint."""

from __future__ import annotations

import hashlib

import torch

from octavo.errors import ModelLoadError
from octavo.models.config import ModelConfig
from octavo.models.expected_tensors import expected_tensors
from octavo.quantization.base import StoredTensor, WeightSource

_DEVIATION = 0.02
_NOISE_VALUES = 2**22 - 3
"""Normal numbers drawn once; a tensor is them again and again from a place of its own. A prime: no two rows of a matrix are the same."""


class DummySource(WeightSource):
    """Every tensor a model of this shape has, filled with small normal numbers that depend on its name and shape alone.

    Args:
        config: the shape.
        device: where the tensors are made and returned; the CPU when None. The values do not depend on it.
    """

    def __init__(self, config: ModelConfig, device: torch.device | None = None) -> None:
        self._shapes = expected_tensors(config)
        self._norm_mean = 0.0 if config.norm_plus_one else 1.0
        self._noise = _Noise(device or torch.device("cpu"))

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def __getitem__(self, name: str) -> StoredTensor:
        if name not in self._shapes:
            raise ModelLoadError(f"a model of this shape has no tensor {name!r}.")
        return _DummyTensor(name, self._shapes[name], self._norm_mean if name.endswith("norm.weight") else 0.0, self._noise)

    def names(self) -> list[str]:
        return list(self._shapes)


class _Noise:
    """An endless row of numbers on a device: the same ``_NOISE_VALUES`` over and over."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._made: dict[torch.dtype, torch.Tensor] = {}

    def take(self, start: int, count: int, dtype: torch.dtype) -> torch.Tensor:
        """[count], a new tensor: the numbers from place ``start`` on."""
        if dtype not in self._made:
            drawn = torch.empty(_NOISE_VALUES).normal_(0.0, _DEVIATION, generator=torch.Generator().manual_seed(0))
            self._made[dtype] = drawn.to(self._device, dtype)
        noise = self._made[dtype]
        taken = torch.empty(count, dtype=dtype, device=self._device)
        done, place = 0, start % _NOISE_VALUES
        while done < count:
            part = min(count - done, _NOISE_VALUES - place)
            taken[done : done + part] = noise[place : place + part]
            done, place = done + part, 0
        return taken


class _DummyTensor(StoredTensor):
    """Numbers of the row ``noise`` from a place that the name says; any rows can be made without the others."""

    def __init__(self, name: str, shape: tuple[int, ...], mean: float, noise: _Noise) -> None:
        self.name = name
        self.shape = shape
        self.format = "F32"
        self._mean = mean
        self._noise = noise
        self._row_values = shape[1] if len(shape) > 1 else 1
        self._start = int.from_bytes(hashlib.sha256(f"{name}:{shape}".encode()).digest()[:8], "little") % _NOISE_VALUES

    def dense(self, dtype: torch.dtype, rows: slice | None = None, columns: slice | None = None) -> torch.Tensor:
        """See ``StoredTensor.dense``; the values are on the source's device."""
        start, stop, step = (rows or slice(None)).indices(self.shape[0])
        wanted = range(start, stop, step)
        first = min(wanted, default=0)
        count = max(wanted, default=-1) + 1 - first
        values = self._noise.take(self._start + first * self._row_values, count * self._row_values, dtype)
        if self._mean:
            values += self._mean
        made = values.view(count, *self.shape[1:])
        if step != 1:
            made = made[torch.tensor(wanted, device=made.device) - first]
        return made if columns is None else made[:, columns].contiguous()
