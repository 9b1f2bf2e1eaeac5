"""A two-layer model against transformers, and which runs agree bit for bit: whole or in chunks, cached or not, alone or in a batch.

"Rows" compare the logits of every row of a step; "engine" compares the tokens and their log probabilities that come out of the engine.
Products of other sizes may be computed by other kernels of cuBLAS, which add in another order: the table says where that shows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from harness.agreement import (
    REHEARSAL,
    SMALL,
    WIDE,
    Answers,
    Difference,
    answers,
    checkpoint,
    compare_answers,
    compare_tensors,
    start,
)
from harness.engine import Engine
from harness.job import Job
from harness.models import random_prompts

TOLERANCE = 1e-4
"""Of the largest logit, in float32."""
TIGHT_CONTEXT = 600
"""Longest context where the pool has room for one such sequence and a block."""


def run(job: Job) -> None:
    """See the module.

    Raises:
        RuntimeError: the logits are not transformers'.
    """
    _against_transformers(job)
    shapes = (REHEARSAL,) if job.dry else (SMALL, WIDE)
    for shape in shapes:
        for dtype in ("float32",) if job.dry else ("float32", "bfloat16"):
            with checkpoint(shape) as folder:
                rows = _rows(job, folder, dtype)
                engines = _engines(job, folder, dtype)
            for kind, found in (("rows", rows), ("engine", engines)):
                for name, difference in found.items():
                    job.figure(
                        f"{shape.name} {dtype} {kind}: {name}",
                        {"same": difference.equal, "largest": difference.largest, "other_tokens": difference.tokens},
                    )
                same = [name for name, difference in found.items() if difference.equal]
                job.row(f"{shape.name}, {dtype}, {kind}, same bits: {', '.join(same) or 'none'}")
                for name, difference in found.items():
                    if not difference.equal:
                        job.row(f"  {name}: {difference}")


# ---- transformers ----------------------------------------------------------------------------------------------------


def _against_transformers(job: Job) -> None:
    import transformers
    from paged_steps import PagedModel, load

    from octavo.ops.cuda.backend import CudaOps

    sizes = REHEARSAL.changes if job.dry else SMALL.changes
    shape = {name: value for name, value in sizes.items() if name != "torch_dtype"}
    torch.manual_seed(3)
    config_of_theirs = transformers.LlamaConfig(**(shape | {"tie_word_embeddings": False, "attn_implementation": "eager"}))
    factory: Any = transformers.AutoModelForCausalLM
    oracle = factory.from_config(config_of_theirs).eval()
    count = 40 if job.dry else 300
    tokens = random_prompts(1, count, int(shape["vocab_size"]), seed=4)[0]
    worst = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        oracle.save_pretrained(folder)
        oracle.to(job.device)
        expected = oracle(torch.tensor([tokens], device=job.device)).logits[0].float()
        for dtype in (torch.float32,) if job.dry else (torch.float32, torch.bfloat16):
            model, config = load(Path(folder), dtype, count, CudaOps(job.device, dtype))
            paged = PagedModel(model, config, dtype)
            parts = [paged.step({0: tokens[begin:end]})[0].clone() for begin, end in ((0, count - 20), (count - 20, count - 2))]
            parts += [paged.step({0: [token]})[0].clone() for token in tokens[-2:]]
            worst[dtype] = _apart(torch.cat(parts), expected)
            job.figure(f"transformers {dtype}", worst[dtype])
        theirs = oracle.to(torch.bfloat16)(torch.tensor([tokens], device=job.device)).logits[0].float()
    job.row(
        f"against transformers' float32 logits (over the largest): float32 {worst[torch.float32]:.1e}"
        + (f", bfloat16 {worst[torch.bfloat16]:.1e}" if torch.bfloat16 in worst else "")
        + f"; transformers' own bfloat16 {_apart(theirs, expected):.1e}"
    )
    if not worst[torch.float32] < TOLERANCE:
        raise RuntimeError(f"float32 logits differ from transformers' by {worst[torch.float32]:.1e} of the largest")


def _apart(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


# ---- rows of logits --------------------------------------------------------------------------------------------------


def _rows(job: Job, folder: Path, dtype_name: str) -> dict[str, Difference]:
    """Steps of the model itself."""
    from paged_steps import PagedModel

    from octavo.models.hub import resolve
    from octavo.models.loader import open_weights, read_model_config
    from octavo.models.registry import build_model
    from octavo.ops.cuda.backend import CudaOps

    dtype: torch.dtype = getattr(torch, dtype_name)
    files = resolve(str(folder))
    config = read_model_config(files)
    model = build_model(config, open_weights(files, config, "dummy", device=job.device), CudaOps(job.device, dtype), 512)
    length = 36 if job.dry else 300
    prompts = random_prompts(4 if job.dry else 12, length, config.vocab_size, seed=5)

    def fresh() -> PagedModel:
        return PagedModel(model, config, dtype, num_blocks=512)

    def steps(paged: PagedModel, tokens: list[int], cuts: list[int], sequence: int = 0) -> torch.Tensor:
        bounds = [0, *cuts, len(tokens)]
        return torch.cat([paged.step({sequence: tokens[a:b]})[sequence].clone() for a, b in pairwise(bounds)])

    whole = steps(fresh(), prompts[0], [])
    found = {"chunks": compare_tensors([(whole, steps(fresh(), prompts[0], [7, 16, 33]))])}
    found["token by token"] = compare_tensors([(whole, steps(fresh(), prompts[0], list(range(length - 8, length))))])

    alone, batched, mixed = fresh(), fresh(), fresh()
    alone.step({0: prompts[0]})
    first = [alone.step({0: [token]})[0].clone() for token in (9, 10, 11)]
    for number, prompt in enumerate(prompts):
        batched.step({number: prompt})
    others = list(range(1, len(prompts)))
    second = [batched.step({0: [token], **{other: [token] for other in others}})[0].clone() for token in (9, 10, 11)]
    found[f"decode in a batch of {len(prompts)}"] = compare_tensors(list(zip(first, second, strict=True)))
    mixed.step({0: prompts[0]})
    third = [mixed.step({0: [token], 1 + turn: prompts[1 + turn]})[0].clone() for turn, token in enumerate((9, 10, 11))]
    found["decode beside a prompt"] = compare_tensors(list(zip(first, third, strict=True)))
    fourth = fresh().step({0: prompts[0], 1: prompts[1], 2: prompts[2]})[0]
    found["prompt beside prompts"] = compare_tensors([(whole, fourth)])
    return found


# ---- the engine ------------------------------------------------------------------------------------------------------


def _engines(job: Job, folder: Path, dtype: str) -> dict[str, Difference]:
    """Requests through the engine, alone and under everything that can happen to them."""
    new = 5 if job.dry else 24
    # Each needs another block after two tokens: a pool that is full then has to take one from somebody.
    lengths = (14, 30, 46) if job.dry else (14, 46, 126, 302, 494)
    engine = start(job, folder, dtype)
    vocabulary = 500 if job.dry else 4096
    targets = [random_prompts(1, length, vocabulary, seed=6)[0] for length in lengths]
    others = [random_prompts(1, 3 + 13 * number % 150, vocabulary, seed=7)[0] for number in range(3 if job.dry else 32)]
    asked: dict[str, Any] = {"logprobs": 1}

    def alone(which: Engine) -> Answers:
        found: Answers = []
        for prompt in targets:
            which.forget_prefixes()
            found += answers(which, which.generate([prompt], new, **asked))
        return found

    def batch(which: Engine) -> Answers:
        which.forget_prefixes()
        half = len(others) // 2
        numbers = which.generate([*others[:half], *targets, *others[half:]], new, **asked)
        return answers(which, numbers[half : half + len(targets)])

    def hits(which: Engine) -> Answers:
        which.generate(targets, 2)
        found: Answers = []
        for prompt in targets:
            numbers = which.generate([prompt], new, **asked)
            if len(prompt) > 32 and not which.cached[numbers[0]]:
                raise RuntimeError("no prefix was found in the cache")
            found += answers(which, numbers)
        return found

    expected = alone(engine)
    results = {
        "again": compare_answers(expected, alone(engine)),
        f"in a batch of {len(others)}": compare_answers(expected, batch(engine)),
        "prefix hit": compare_answers(expected, hits(engine)),
    }
    engine.shutdown()
    tight = {"kv_cache_memory_bytes": _tight(engine), "enable_prefix_caching": False, "max_model_len": 64 if job.dry else TIGHT_CONTEXT}
    changed: list[tuple[str, dict[str, Any], Callable[[Engine], Answers]]] = [
        ("chunks of 24", {"max_num_batched_tokens": 24, "max_num_seqs": 8}, alone),
        ("preemption", tight, batch),
    ]
    for name, options, ask in changed:
        other = start(job, folder, dtype, **options)
        results[name] = compare_answers(expected, ask(other))
        if name == "preemption":
            preempted = other.core.stats.preemptions
            job.figure(f"preemptions {folder.name} {dtype}", dict(preempted))
            if not any(preempted.values()):
                del results[name]
                job.row("preemption: not compared, since nothing was preempted")
        other.shutdown()
    return results


def _tight(engine: Engine) -> int:
    """Bytes of a pool that holds the longest sequence, and little more."""
    plan = engine.core.plan
    return (-(-(TIGHT_CONTEXT if plan.device == "cuda" else 64) // plan.block_size) + 1) * plan.block_bytes
