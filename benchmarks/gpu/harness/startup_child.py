"""A process that starts an engine on a model with dummy weights and answers one request; prints when it was where, as JSON.

Arguments: the model's directory, the device, and when the process was started (``time.time()``).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> None:
    """Start, answer, print."""
    model, device, started = sys.argv[1], sys.argv[2], float(sys.argv[3])
    if device == "cpu":
        from harness.rehearsal import rehearse

        rehearse()
    import torch

    marks = {"python and torch": time.time() - started}
    if device == "cuda":
        torch.zeros(1, device="cuda")
    marks["device"] = time.time() - started
    from harness.engine import Engine

    loaded: list[float] = []
    options = {"dtype": "float32", "kv_cache_memory_bytes": 2**23} if device == "cpu" else {}
    engine = Engine(Path(model), device=device, load_format="dummy", progress=lambda phase, fraction: loaded.append(time.time()), **options)
    marks["weights"] = loaded[-1] - started if loaded else 0.0
    marks["engine"] = time.time() - started
    engine.add(list(range(8, 40)), 2)
    while not engine.first:
        engine.step()
    marks["first token"] = time.time() - started
    engine.drain()
    marks["second token"] = time.time() - started
    print(json.dumps(marks), flush=True)


if __name__ == "__main__":
    main()
