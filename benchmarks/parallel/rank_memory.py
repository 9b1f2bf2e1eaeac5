"""How much memory each rank takes to load its part of a model of some gigabytes: random bf16 weights in a safetensors file.

.venv/bin/python benchmarks/parallel/rank_memory.py [--layers 32] [-tp 2] [-pp 1]
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from octavo.config import engine_options
from octavo.engine.core import EngineCore
from octavo.executor.multiproc import MultiprocExecutor
from octavo.models.expected_tensors import expected_tensors
from octavo.models.hub import ModelFiles
from octavo.models.loader import read_model_config
from octavo.models.sharding import share_out
from octavo.runner.memory_plan import matrix_formats, weight_bytes

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
}
GOAL = 300e6


def megabytes(pid: int, field: str) -> float:
    """A line of /proc/PID/status."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("-tp", type=int, default=2)
    parser.add_argument("-pp", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(SHAPE | {"num_hidden_layers": args.layers}))
        files = ModelFiles("random", "hf", folder)
        config = read_model_config(files)
        save_file(
            {name: (torch.randn(shape) * 0.02).bfloat16() for name, shape in expected_tensors(config).items()}, folder / "model.safetensors"
        )
        layout = {"tensor_parallel_size": args.tp, "pipeline_parallel_size": args.pp}
        core = EngineCore(engine_options(**layout, dtype="bfloat16", kv_cache_memory_bytes=2**28, max_model_len=1024), files)
        assert isinstance(core._executor, MultiprocExecutor)
        print("| rank | weights, MB | peak at load, MB | beyond them, MB | goal |\n| --- | --- | --- | --- | --- |")
        for rank, (pid, shard) in enumerate(zip(core._executor.pids, share_out(config, args.tp, args.pp), strict=True)):
            weights = weight_bytes(config, "bfloat16", matrix_formats(config, "none", None, shard), shard) / 1e6
            peak = megabytes(pid, "VmHWM")
            print(f"| {rank} | {weights:.0f} | {peak:.0f} | {peak - weights:.0f} | {'met' if peak - weights <= GOAL / 1e6 else 'missed'} |")
        core.shutdown()


if __name__ == "__main__":
    main()
