"""What every measurement on the 8B shape shares: its engine, and the least time a step can take."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.engine import Engine
from harness.job import Job
from harness.models import LLAMA3_8B, TINY, write_shape
from harness.peaks import as_limits, bandwidth, peaks
from octavo.bench.limits import Limits, ModelCost, model_cost
from octavo.models.config import ModelConfig
from octavo.models.hub import resolve
from octavo.models.loader import read_model_config

MAX_SEQUENCES = 256


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is measured.

    Attributes:
        folder: its config.json.
        limits: what the GPU can do.
    """

    folder: Path
    config: ModelConfig
    cost: ModelCost
    limits: Limits
    bandwidth: float

    def decode_seconds(self, sequences: int, context: float) -> float:
        """The least a decoding step can take: the weights and all keys and values read once, or the products done."""
        read = self.cost.step_bytes + sequences * self.cost.kv_bytes(round(context))
        layers, head = (part.seconds(self.cost.dtype, self.limits) for part in (self.cost.layers, self.cost.head))
        return max(read / self.bandwidth, sequences * (layers + head))

    def prefill_seconds(self, tokens: int) -> float:
        """The least that a prompt can take: its products (attention's are left out), or the weights read once."""
        layers, head = (part.seconds(self.cost.dtype, self.limits) for part in (self.cost.layers, self.cost.head))
        return max(tokens * layers + head, self.cost.step_bytes / self.bandwidth)


def subject(job: Job) -> Subject:
    """Llama 3 8B's shape; a tiny one in a rehearsal."""
    folder = write_shape(Path("/tmp/octavo-gpu-tiny"), **TINY) if job.dry else LLAMA3_8B
    config = read_model_config(resolve(str(folder)))
    dtype = "float32" if job.dry else "bfloat16"
    found = peaks(job)
    return Subject(folder, config, model_cost(config, dtype, dtype), as_limits(found), bandwidth(found))


def start_engine(job: Job, about: Subject, **options: Any) -> Engine:
    """An engine with random weights and no prefix cache; says how long it took."""
    begin = time.perf_counter()
    plain: dict[str, Any] = {"load_format": "dummy", "enable_prefix_caching": False, "max_num_seqs": MAX_SEQUENCES}
    if job.dry:
        plain |= {"device": "cpu", "dtype": "float32", "max_num_seqs": 8, "kv_cache_memory_bytes": 2**23}
    else:
        plain |= {"device": "cuda"}
    engine = Engine(about.folder, **(plain | options))
    print(f"engine ready in {time.perf_counter() - begin:.1f} s: {engine.core.ready}", flush=True)
    return engine
