"""``octavo bench throughput`` and ``latency``: the engine through ``LLM``, no server between, as a share of the machine's limit.

Prompts are random ordinary tokens, new ones in every round, so that the prefix cache never helps; generation is greedy and goes on past
the end-of-sequence token, so that the work is the same in every run.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from octavo.bench.datasets import Sample, TokenIds, random_samples
from octavo.bench.options import LatencyOptions, ThroughputOptions
from octavo.bench.report import Row, save_json, summarise, table
from octavo.bench.yardstick import Yardstick, limit_json, limit_section, yardstick
from octavo.errors import ConfigError, OctavoError
from octavo.sampling_params import SamplingParams

if TYPE_CHECKING:
    from octavo.llm import LLM

LATENCY_PERCENTILES = (10.0, 25.0, 50.0, 75.0, 90.0, 99.0)


def throughput(engine: dict[str, Any], bench: ThroughputOptions) -> int:
    """Generate for all prompts in one call and print tokens a second.

    Args:
        engine: engine options by name, as ``LLM(**options)`` takes them.
    """
    _positive({"--input-len": bench.input_len, "--output-len": bench.output_len, "--num-prompts": bench.num_prompts})
    known = yardstick(engine)
    samples = _samples(known, bench.num_prompts, bench.input_len, bench.output_len, known.options.model.seed or 0)
    llm = _load(engine)
    try:
        _generate(llm, _samples(known, min(4, bench.num_prompts), bench.input_len, 4, seed=-1))
        seconds = _generate(llm, samples)
    finally:
        llm.shutdown()
    prompt_tokens, new_tokens = bench.num_prompts * bench.input_len, bench.num_prompts * bench.output_len
    least = known.least([(bench.input_len, bench.output_len)] * bench.num_prompts)
    rows: list[Row] = [
        ("Requests:", bench.num_prompts),
        ("Duration (s):", seconds),
        ("Prompt tokens:", prompt_tokens),
        ("Generated tokens:", new_tokens),
        ("Request throughput (req/s):", bench.num_prompts / seconds),
        ("Output token throughput (tok/s):", new_tokens / seconds),
        ("Total token throughput (tok/s):", (prompt_tokens + new_tokens) / seconds),
    ]
    print(table("Throughput", [("", rows), *limit_section(known, least, seconds)]))
    if bench.output_json:
        result = {
            "elapsed_time": seconds,
            "num_requests": bench.num_prompts,
            "total_num_tokens": prompt_tokens + new_tokens,
            "requests_per_second": bench.num_prompts / seconds,
            "tokens_per_second": (prompt_tokens + new_tokens) / seconds,
            "output_tokens_per_second": new_tokens / seconds,
        }
        save_json(bench.output_json, result | limit_json(known, least, seconds))
    return 0


def latency(engine: dict[str, Any], bench: LatencyOptions) -> int:
    """Generate for one batch at a time and print how long a batch takes.

    Args:
        engine: engine options by name, as ``LLM(**options)`` takes them.
    """
    _positive(
        {
            "--input-len": bench.input_len,
            "--output-len": bench.output_len,
            "--batch-size": bench.batch_size,
            "--num-iters": bench.num_iters,
        }
    )
    if bench.num_iters_warmup < 0:
        raise ConfigError(f"--num-iters-warmup must not be negative; got {bench.num_iters_warmup}.")
    known = yardstick(engine)
    seed = known.options.model.seed or 0
    llm = _load(engine)
    try:
        seconds = [
            _generate(llm, _samples(known, bench.batch_size, bench.input_len, bench.output_len, seed + i))
            for i in range(bench.num_iters_warmup + bench.num_iters)
        ][-bench.num_iters :]
    finally:
        llm.shutdown()
    summary = summarise(seconds, LATENCY_PERCENTILES)
    if summary is None:
        raise OctavoError("no batch was measured.")
    least = known.least([(bench.input_len, bench.output_len)] * bench.batch_size)
    rows: list[Row] = [
        ("Batch size:", bench.batch_size),
        ("Batches measured:", bench.num_iters),
        ("Mean latency (s):", summary.mean),
        *((f"P{q:g} latency (s):", value) for q, value in summary.percentiles.items()),
        ("Output token throughput (tok/s):", bench.batch_size * bench.output_len / summary.median),
    ]
    print(table("Latency", [("", rows), *limit_section(known, least, summary.median)]))
    if bench.output_json:
        result = {
            "avg_latency": summary.mean,
            "latencies": seconds,
            "percentiles": {f"{q:g}": value for q, value in summary.percentiles.items()},
        }
        save_json(bench.output_json, result | limit_json(known, least, summary.median))
    return 0


def _positive(values: dict[str, int]) -> None:
    for flag, value in values.items():
        if value < 1:
            raise ConfigError(f"{flag} must be at least 1; got {value}.")


def _load(engine: dict[str, Any]) -> LLM:
    from octavo.llm import LLM

    return LLM(**engine)


def _samples(known: Yardstick, num: int, input_len: int, output_len: int, seed: int) -> list[Sample]:
    # A seed's stream differs from its neighbour's, but not from the same seed's with another count: mix the shape in.
    mixed = random.Random(f"{seed} {num} {input_len} {output_len}").getrandbits(64)
    return random_samples(TokenIds(known.pool), num, input_len, output_len, 0.0, mixed)


def _generate(llm: LLM, samples: Sequence[Sample]) -> float:
    """Seconds for all samples together; checks that every answer has the length asked for."""
    params = SamplingParams(temperature=0.0, max_tokens=samples[0].output_len, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": sample.prompt} for sample in samples]
    start = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - start
    for output, sample in zip(outputs, samples, strict=True):
        if len(output.outputs[0].token_ids) != sample.output_len:
            raise OctavoError(
                f"a request ended after {len(output.outputs[0].token_ids)} of {sample.output_len} tokens "
                f"({output.outputs[0].finish_reason}); the figures would be wrong."
            )
    return seconds
