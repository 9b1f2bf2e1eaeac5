"""Decoding of every storage type against the gguf package's own decoder."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from octavo.quantization.gguf import BLOCKS
from octavo.quantization.gguf_dequantize import dequantize

# Where each type keeps half-precision scales in a block; random bytes there would be infinities and NaNs.
HALF_SCALES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip
PLAIN = {"F32": np.float32, "F16": np.float16}


def random_blocks(storage: str, count: int, seed: int = 0) -> np.ndarray:
    """uint8 [count, bytes a block]: every bit random but for the scales, which are random finite numbers of both signs."""
    rng = np.random.default_rng(seed)
    values, nbytes = BLOCKS[storage]
    if storage in PLAIN:
        return rng.standard_normal((count, values)).astype(PLAIN[storage]).view(np.uint8)
    if storage == "BF16":
        return torch.from_numpy(rng.standard_normal((count, values))).bfloat16().view(torch.uint8).numpy()
    blocks = rng.integers(0, 256, (count, nbytes), dtype=np.uint8)
    for offset in HALF_SCALES[storage]:
        scales = rng.standard_normal(count) * 10.0 ** rng.integers(-6, 4, count)
        blocks[:, offset : offset + 2] = scales.astype(np.float16)[:, None].view(np.uint8)
    return blocks


def oracle(blocks: np.ndarray, storage: str) -> np.ndarray:
    return gguf.dequantize(blocks, gguf.GGMLQuantizationType[storage]).reshape(-1)


@pytest.mark.parametrize("storage", BLOCKS)
def test_float32_results_equal_the_oracle_bit_for_bit(storage: str) -> None:
    blocks = random_blocks(storage, 1031)
    out = torch.full((1031 * BLOCKS[storage][0],), float("nan"))
    dequantize(blocks.reshape(-1), storage, out)
    assert np.array_equal(out.numpy().view(np.int32), oracle(blocks, storage).view(np.int32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("storage", BLOCKS)
def test_narrow_results_are_the_float32_ones_rounded_once(storage: str, dtype: torch.dtype) -> None:
    blocks = random_blocks(storage, 64, seed=1)
    out = torch.full((64 * BLOCKS[storage][0],), float("nan"), dtype=dtype)
    dequantize(blocks.reshape(-1), storage, out)
    expected = torch.from_numpy(oracle(blocks, storage).copy()).to(dtype)
    assert torch.equal(out.view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("storage", ["Q4_1", "Q6_K", "F16", "F32"])
def test_long_tensors_are_decoded_whole_on_any_number_of_threads(storage: str, threads: int) -> None:
    count = 2**19 // BLOCKS[storage][0] * 2 + 3
    blocks = random_blocks(storage, count, seed=2)
    out = torch.full((count * BLOCKS[storage][0],), float("nan"))
    torch.set_num_threads(threads)
    dequantize(blocks.reshape(-1), storage, out)
    assert np.array_equal(out.numpy(), oracle(blocks, storage))


def test_read_only_memory_is_accepted_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    for storage in ("Q8_0", "F32", "BF16"):
        blocks = np.frombuffer(random_blocks(storage, 32).tobytes(), np.uint8)
        dequantize(blocks, storage, torch.empty(32 * BLOCKS[storage][0]))
        dequantize(blocks, storage, torch.empty(32 * BLOCKS[storage][0], dtype=torch.bfloat16))
    assert not recwarn.list
