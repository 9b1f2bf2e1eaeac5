"""Decoding steps as graphs give the bits of eager ones, and overlapped scheduling the tokens of synchronous: greedy and drawn."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

from harness.agreement import REHEARSAL, SMALL, WIDE, Answers, answers, checkpoint, compare_answers, start
from harness.engine import Engine
from harness.job import Job
from harness.models import random_prompts

from octavo.config import SchedulerOptions

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"temperature": 0.9},
    "filtered": {"temperature": 1.1, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
    "with log probabilities": {"logprobs": 2},
    "penalties": {"repetition_penalty": 1.2, "temperature": 0.7},
}


def run(job: Job) -> None:
    """See the module.

    Raises:
        RuntimeError: something differs.
    """
    overlaps = "async_scheduling" in {field.name for field in dataclasses.fields(SchedulerOptions)}
    variants: dict[str, dict[str, Any]] = {"eager": {"enforce_eager": True}, "graphs": {"enforce_eager": False}}
    if overlaps:
        variants = {
            f"{name}, {'overlapped' if overlap else 'synchronous'}": options | {"async_scheduling": overlap}
            for name, options in variants.items()
            for overlap in (False, True)
        }
    else:
        job.row("overlapped scheduling: there is no option async_scheduling")
    apart = []
    for shape in (REHEARSAL,) if job.dry else (SMALL, WIDE):
        for dtype in ("float32",) if job.dry else ("float32", "bfloat16"):
            with checkpoint(shape) as folder:
                runs = {name: _answers(job, folder, dtype, options) for name, options in variants.items()}
            (plain, expected), *rest = runs.items()
            for name, actual in rest:
                difference = compare_answers(expected, actual)
                job.figure(f"{shape.name} {dtype}: {name}", dataclasses.asdict(difference))
                job.row(f"{shape.name}, {dtype}: {name} against {plain}: {difference}")
                if not difference.equal:
                    apart.append(f"{shape.name} {dtype} {name}")
    if apart:
        raise RuntimeError(f"not the same: {', '.join(apart)}")


def _answers(job: Job, folder: Path, dtype: str, options: dict[str, Any]) -> Answers:
    """Requests of all kinds that come while others run, so that batches grow, shrink and mix prompts with decoding."""
    engine = start(job, folder, dtype, **options)
    draw = random.Random(8)
    numbers: list[int] = []
    for turn in range(2 if job.dry else 8):
        for kind, params in KINDS.items():
            length = draw.randrange(2, 30 if job.dry else 400)
            prompt = random_prompts(1, length, 500 if job.dry else 4096, seed=turn)[0]
            numbers.append(engine.add(prompt, draw.randrange(3, 8 if job.dry else 60), key=turn, **params))
            if kind != "greedy":
                engine.step()
        for _ in range(1 if job.dry else 5):
            engine.step()
    engine.drain()
    found = answers(engine, numbers)
    _check_depth(job, engine, options)
    engine.shutdown()
    return found


def _check_depth(job: Job, engine: Engine, options: dict[str, Any]) -> None:
    """Note whether steps overlapped at all: without sampling on the device they cannot."""
    depth = getattr(getattr(engine.core, "_executor", None), "depth", None)
    job.figure(f"steps in flight: {options}", depth)
