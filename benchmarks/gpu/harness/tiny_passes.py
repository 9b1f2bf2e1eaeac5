"""Prompts, mixed steps and decoding steps of a tiny model with dummy weights on one device: what compute-sanitizer watches.

Run as a program with the device's name. Uneven sizes: the last tile of everything is ragged.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.models import TINY, write_shape
from harness.rehearsal import interpret_kernels


def passes(device: torch.device, dtype: torch.dtype, folder: Path) -> None:
    """A few steps whose logits must be numbers."""
    from paged_steps import PagedModel

    from octavo.models.hub import resolve
    from octavo.models.loader import open_weights, read_model_config
    from octavo.models.registry import build_model
    from octavo.ops.cuda.backend import CudaOps

    files = resolve(str(folder))
    config = read_model_config(files)
    # Graphs take their memory from a pool, which would hide what is looked for.
    ops = CudaOps(device, dtype, graphs=False)
    model = build_model(config, open_weights(files, config, "dummy", device=device), ops, 512)
    paged = PagedModel(model, config, dtype, num_blocks=64)
    long = 40 if device.type == "cpu" else 300
    for tokens in (
        {0: list(range(3, 3 + long)), 1: [5, 6, 7]},
        {0: [9], 1: list(range(8, 45)), 2: [4]},
        {1: [3], 0: [4], 2: [5]},
        {2: [6], 1: [3]},
    ):
        for logits in paged.step(tokens).values():
            if not bool(logits.isfinite().all()):
                raise RuntimeError(f"logits in {dtype} are no numbers")


def main() -> None:
    """Run in each type that the device can multiply."""
    device = torch.device(sys.argv[1])
    if device.type == "cpu":
        interpret_kernels()
    for heads in ({}, {"hidden_size": 72, "num_attention_heads": 3, "num_key_value_heads": 1}):
        with tempfile.TemporaryDirectory() as folder:
            path = write_shape(Path(folder), **(TINY | heads))
            for dtype in (torch.float32,) if device.type == "cpu" else (torch.float32, torch.bfloat16):
                passes(device, dtype, path)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                print(f"passed: {heads or 'four heads'} in {dtype}", flush=True)


if __name__ == "__main__":
    main()
