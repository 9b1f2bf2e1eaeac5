"""What a ``BlockWeight`` stands for, spelled out, and normal weights in the K types."""

from __future__ import annotations

import numpy as np

from octavo.ops.base import BlockWeight


def spelled_out(weight: BlockWeight) -> np.ndarray:
    """float32 [N, K]: scale * (q - zero) + minimum."""
    q = weight.values if weight.bits == 8 else np.concatenate([weight.values & 15, weight.values >> 4], axis=2)
    values = (q.astype(np.float32) - np.float32(weight.zero)) * weight.scales.astype(np.float32)[:, :, None]
    if weight.minima is not None:
        values = values + weight.minima.astype(np.float32)[:, :, None]
    return values.reshape(weight.shape)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """RMS of the difference over the RMS of ``expected``."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))


def normal_k_blocks(storage: str, count: int, deviation: float = 0.02, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Normal weights encoded by plain rounding.

    Args:
        storage: Q2_K, Q3_K, Q4_K, Q5_K or Q6_K.

    Returns:
        the weights, float32 [count, 256], and the blocks, uint8 [count, bytes a block].
    """
    weights = (np.random.default_rng(seed).standard_normal((count, 256)) * deviation).astype(np.float32)
    return weights, (_signed if storage in ("Q3_K", "Q6_K") else _with_minima)(weights, storage)


def _half(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16)[:, None].view(np.uint8)


def _divide(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    return np.divide(values, by, out=np.zeros_like(values + by), where=by != 0)


def _signed(weights: np.ndarray, storage: str) -> np.ndarray:
    """Q3_K and Q6_K: the value of largest magnitude of each 16 becomes the most negative integer."""
    levels, steps = (4, 31) if storage == "Q3_K" else (32, 127)
    groups = weights.reshape(-1, 16, 16)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(2)[:, :, None], 2)[:, :, 0] / -levels
    d = (np.abs(largest).max(1) / steps).astype(np.float16)
    s = np.clip(np.rint(_divide(largest, d.astype(np.float32)[:, None])), -steps, steps).astype(np.int32)
    q = np.rint(_divide(groups, (s * d.astype(np.float32)[:, None])[:, :, None]))
    q = (np.clip(q, -levels, levels - 1) + levels).astype(np.uint8).reshape(-1, 256)
    if storage == "Q6_K":
        q = q.reshape(-1, 2, 2, 2, 32)
        low = (q[:, :, 0] & 15) | ((q[:, :, 1] & 15) << 4)
        high = sum((q.reshape(-1, 2, 4, 32)[:, :, i] >> 4) << (2 * i) for i in range(4))
        return np.concatenate([low.reshape(-1, 128), high.reshape(-1, 64), s.astype(np.int8).view(np.uint8), _half(d)], 1)
    low = sum((q.reshape(-1, 2, 4, 32)[:, :, i] & 3) << (2 * i) for i in range(4))
    high = sum((q.reshape(-1, 8, 32)[:, i] >> 2) << i for i in range(8))
    s = (s + 32).astype(np.uint8)
    nibbles = (s[:, :8] & 15) | ((s[:, 8:] & 15) << 4)
    upper = sum((s.reshape(-1, 4, 4)[:, i] >> 4) << (2 * i) for i in range(4))
    return np.concatenate([high, low.reshape(-1, 64), nibbles, upper, _half(d)], 1)


def _with_minima(weights: np.ndarray, storage: str) -> np.ndarray:
    """Q2_K, Q4_K and Q5_K: from the smallest value of each group (never above 0) to the largest."""
    size, levels, steps = {"Q2_K": (16, 3, 15), "Q4_K": (32, 15, 63), "Q5_K": (32, 31, 63)}[storage]
    groups = weights.reshape(len(weights), -1, size)
    low = np.maximum(-groups.min(2), 0)
    span = (groups.max(2) + low) / levels
    d, dmin = ((largest.max(1) / steps).astype(np.float16) for largest in (span, low))
    s, m = (np.clip(np.rint(_divide(v, f.astype(np.float32)[:, None])), 0, steps).astype(np.uint8) for v, f in ((span, d), (low, dmin)))
    factors, minima = s * d.astype(np.float32)[:, None], m * dmin.astype(np.float32)[:, None]
    q = np.clip(np.rint(_divide(groups + minima[:, :, None], factors[:, :, None])), 0, levels).astype(np.uint8)
    if storage == "Q2_K":
        packed = sum(q.reshape(-1, 2, 4, 32)[:, :, i] << (2 * i) for i in range(4))
        return np.concatenate([s | (m << 4), packed.reshape(-1, 64), _half(d), _half(dmin)], 1)
    scales = np.concatenate(
        [s[:, :4] | ((s[:, 4:] >> 4) << 6), m[:, :4] | ((m[:, 4:] >> 4) << 6), (s[:, 4:] & 15) | ((m[:, 4:] & 15) << 4)], 1
    )
    pairs = q.reshape(-1, 4, 2, 32)
    nibbles = ((pairs[:, :, 0] & 15) | ((pairs[:, :, 1] & 15) << 4)).reshape(-1, 128)
    fifth = [sum((q[:, i] >> 4) << i for i in range(8))] if storage == "Q5_K" else []
    return np.concatenate([_half(d), _half(dmin), scales, *fifth, nibbles], 1)
