"""Rotary position embedding (Su et al., 2021) and its context extensions, as one table of cosines and sines.

Every extension rescales the frequencies; they follow transformers' ``modeling_rope_utils``. Keys are cached after rotation, so one
table must serve a sequence through its whole life. Where transformers picks the frequencies by the length of the moment
(``dynamic``, ``longrope``), Octavo picks them once, by ``max_model_len``: a server that admits contexts beyond the original limit
uses the long frequencies for all of them, one that does not uses the original ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from octavo.errors import UnsupportedModelError


class RotarySettings(Protocol):
    """What the table is made from; ``octavo.models.config.RotaryConfig`` says what each field means."""

    @property
    def dim(self) -> int: ...
    @property
    def theta(self) -> float: ...
    @property
    def kind(self) -> str: ...
    @property
    def params(self) -> Mapping[str, Any]: ...
    @property
    def original_max_position(self) -> int | None: ...


def rotary_table(rotary: RotarySettings, max_position_embeddings: int, max_model_len: int) -> torch.Tensor:
    """Cosines, then sines, of each position's angles.

    Args:
        max_position_embeddings: the model's own limit, scaling included.
        max_model_len: positions the table has.

    Returns:
        float32 [max_model_len, dim].

    Raises:
        UnsupportedModelError: a kind of scaling that Octavo does not know.
    """
    if rotary.kind not in _FREQUENCIES:
        raise UnsupportedModelError(f"Rotary scaling {rotary.kind!r} is not one of {', '.join(_FREQUENCIES)}.")
    frequencies, factor = _FREQUENCIES[rotary.kind](rotary, max_position_embeddings, max_model_len)
    angles = torch.arange(max_model_len, dtype=torch.float32).unsqueeze(1) * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=1).mul_(factor)


def _plain(theta: float, dim: int) -> torch.Tensor:
    """theta^(-2i / dim) for i < dim / 2, float32."""
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def _default(rotary: RotarySettings, longest: int, max_model_len: int) -> tuple[torch.Tensor, float]:
    return _plain(rotary.theta, rotary.dim), 1.0


def _linear(rotary: RotarySettings, longest: int, max_model_len: int) -> tuple[torch.Tensor, float]:
    """Position interpolation: all frequencies divided by the factor."""
    return _plain(rotary.theta, rotary.dim) / rotary.params["factor"], 1.0


def _dynamic(rotary: RotarySettings, longest: int, max_model_len: int) -> tuple[torch.Tensor, float]:
    """NTK-aware scaling of the base, at ``max_model_len`` where that is beyond the original limit, else none."""
    original, factor = rotary.original_max_position or longest, rotary.params["factor"]
    stretch = factor * max(max_model_len, original) / original - (factor - 1)
    return _plain(rotary.theta * stretch ** (rotary.dim / (rotary.dim - 2)), rotary.dim), 1.0


def _llama3(rotary: RotarySettings, longest: int, max_model_len: int) -> tuple[torch.Tensor, float]:
    """Llama 3.1: long wavelengths are divided by the factor, short ones kept, those between blended."""
    params, original = rotary.params, rotary.original_max_position or longest
    low, high = params["low_freq_factor"], params["high_freq_factor"]
    frequencies = _plain(rotary.theta, rotary.dim)
    wavelengths = 2 * math.pi / frequencies
    kept = ((original / wavelengths - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies * kept + frequencies / params["factor"] * (1.0 - kept), 1.0


def _yarn(rotary: RotarySettings, longest: int, max_model_len: int) -> tuple[torch.Tensor, float]:
    """YaRN (Peng et al., 2023): a ramp from kept to interpolated frequencies, and a factor on cosines and sines."""
    params, original, dim = rotary.params, rotary.original_max_position or longest, rotary.dim
    factor = params.get("factor") or longest / original

    def turns_at(turns: float) -> float:
        """The dimension whose angle makes ``turns`` turns within the original context."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rotary.theta))

    low, high = turns_at(params.get("beta_fast") or 32), turns_at(params.get("beta_slow") or 1)
    if params.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low if high != low else 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0.0, 1.0)
    frequencies = _plain(rotary.theta, dim)
    return frequencies / factor * ramp + frequencies * (1.0 - ramp), _yarn_attention_factor(params, factor)


def _yarn_attention_factor(params: Mapping[str, Any], factor: float) -> float:
    if params.get("attention_factor") is not None:
        return float(params["attention_factor"])

    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if params.get("mscale") and params.get("mscale_all_dim"):
        return mscale(params["mscale"]) / mscale(params["mscale_all_dim"])
    return mscale(1.0)


def _longrope(rotary: RotarySettings, longest: int, max_model_len: int) -> tuple[torch.Tensor, float]:
    """LongRoPE (Ding et al., 2024): a divisor a frequency, the long ones where ``max_model_len`` exceeds the original limit."""
    params, original = rotary.params, rotary.original_max_position or longest
    divisors = torch.tensor(params["long_factor" if max_model_len > original else "short_factor"], dtype=torch.float32)
    stretch = params.get("factor") or longest / original
    factor = params.get("attention_factor")
    if factor is None:
        factor = 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))
    return _plain(rotary.theta, rotary.dim) / divisors, float(factor)


_FREQUENCIES: dict[str, Callable[[RotarySettings, int, int], tuple[torch.Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}
