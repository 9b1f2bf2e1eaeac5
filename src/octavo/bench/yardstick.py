"""How near to the machine's limit a run came: what the machine can do, what the model costs, and the lines of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.bench.datasets import WORDS_TEXT
from octavo.bench.limits import Limits, ModelCost, least_seconds, measure, model_cost
from octavo.bench.report import Row
from octavo.config import EngineOptions, engine_options
from octavo.frontend.tokenizer import load_tokenizer
from octavo.models.config import ModelConfig
from octavo.models.hub import resolve
from octavo.models.loader import read_model_config, stored_formats
from octavo.quantization.formats import PackedFormat
from octavo.runner.device import select_device
from octavo.runner.memory_plan import describe_formats, kernels_for, matrix_formats, plan_memory


@dataclass(frozen=True, slots=True)
class Yardstick:
    """The machine and the model.

    Attributes:
        limits: None where the model does not run on the CPU, whose limits are the ones that can be measured.
        pool: ordinary token ids.
        matrices: how weights are held, by name; None where all are dense.
    """

    options: EngineOptions
    config: ModelConfig
    dtype: str
    kv_dtype: str
    limits: Limits | None
    pool: tuple[int, ...]
    matrices: Mapping[str, PackedFormat] | None = None

    @property
    def cost(self) -> ModelCost:
        return model_cost(self.config, self.dtype, self.kv_dtype, self.matrices)

    @property
    def weights(self) -> str:
        """How weights are held, in words."""
        return self.dtype if self.matrices is None else describe_formats(self.matrices, self.dtype)

    def least(self, lengths: Sequence[tuple[int, int]]) -> float | None:
        """The least seconds for sequences of these (prompt, new) lengths; None without limits."""
        if self.limits is None:
            return None
        return least_seconds(self.cost, lengths, self.options.scheduler.max_num_seqs, self.limits)


def yardstick(engine: dict[str, Any]) -> Yardstick:
    """Read the model's small files and measure the machine, which should be quiet.

    Args:
        engine: engine options by name, as ``LLM(**options)`` takes them.
    """
    options = engine_options(**engine)
    files = resolve(options.model.model, options.model.revision)
    config = read_model_config(files)
    formats = stored_formats(files, config, options.model.load_format)
    device = select_device(options.device)
    plan = plan_memory(config, options, device, formats=formats)
    dense = kernels_for(device, plan.dtype) == "reference"
    matrices = None if dense else matrix_formats(config, options.model.quantization, formats)
    tokenizer = load_tokenizer(files, options.model.tokenizer, options.model.revision)
    pool = tuple(sorted(set(tokenizer.encode(WORDS_TEXT, add_special_tokens=False))))
    limits = measure(options.device.threads) if plan.device == "cpu" else None
    return Yardstick(options, config, plan.dtype, plan.kv_dtype, limits, pool, matrices)


def limit_section(known: Yardstick, least: float | None, seconds: float) -> list[tuple[str, list[Row]]]:
    """The report's section on the limit, for a run that took ``seconds``."""
    if known.limits is None or least is None:
        return [("Share of the limit", [("Not known:", "only a CPU's limits are measured")])]
    rows: list[Row] = [("Memory read (GB/s):", known.limits.read_gb_s)]
    rows += [(f"{kind} product ({unit}/s):", known.limits.arithmetic(kind) / 1e9) for kind, unit in _multiplied(known)]
    rows += [
        ("Weights:", known.weights),
        ("Least time on this machine (s):", least),
        ("Share of the limit (%):", 100.0 * least / seconds),
    ]
    return [("Share of the limit", rows)]


def _multiplied(known: Yardstick) -> list[tuple[str, str]]:
    """The types that the model multiplies in, and the unit of their operations."""
    cost = known.cost
    dense = [(known.dtype, "GFLOP")] if cost.layers.dense or cost.head.dense else []
    return [*dense, ("int8", "GOP")] if cost.quantised else dense


def limit_json(known: Yardstick, least: float | None, seconds: float) -> dict[str, Any]:
    """The result file's entry on the limit; ``share`` is the least time over the time taken."""
    if known.limits is None or least is None:
        return {"limit": None}
    return {
        "limit": {
            "threads": known.limits.threads,
            "read_gb_s": known.limits.read_gb_s,
            "gflop_s": known.limits.arithmetic(known.dtype) / 1e9,
            "dtype": known.dtype,
            "int8_gop_s": known.limits.arithmetic("int8") / 1e9 if known.cost.quantised else None,
            "weights": known.weights,
            "kv_dtype": known.kv_dtype,
            "step_bytes": known.cost.step_bytes,
            "least_seconds": least,
            "share": least / seconds,
        }
    }
