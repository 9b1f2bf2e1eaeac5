"""The benchmarks' flags, as dataclasses that ``cli/flags.py`` makes flags of. Importing this is cheap."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from octavo.config import CacheOptions, ModelOptions, option

COMPLETIONS, CHAT, GENERATE = "/v1/completions", "/v1/chat/completions", "/generate"
ENDPOINTS = (COMPLETIONS, CHAT, GENERATE)
DATASETS = ("random", "sharegpt", "prefix_repetition")


def _served(group: type, name: str, text: str) -> Any:
    """A flag for what the server was told in a flag of its own, with that one's choices."""
    choices = next(field.metadata["choices"] for field in fields(group) if field.name == name)
    return option("auto", text, choices=choices)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The server, and how requests come to it."""

    base_url: str = option("http://127.0.0.1:8000", "address of the server")
    endpoint: str = option(COMPLETIONS, "where requests go", choices=ENDPOINTS)
    model: str | None = option(None, "served name; the first the server names when omitted", kind=str)
    api_key: str | None = option(None, "key to send ($OCTAVO_API_KEY where not given)", kind=str)
    num_prompts: int = option(100, "requests to send")
    request_rate: float = option(float("inf"), "requests a second; inf sends all at once")
    burstiness: float = option(1.0, "shape of the gamma distribution of gaps: 1 is a Poisson process, less is burstier")
    max_concurrency: int | None = option(None, "most requests in flight; no limit when omitted", kind=int)
    temperature: float = option(0.0, "sampling temperature")
    ignore_eos: bool = option(False, "generate up to the output length whatever the model says (vLLM's and Octavo's field)")
    seed: int = option(0, "seed of prompts, lengths and arrivals; a prefix cache remembers the prompts of the same seed")


@dataclass(frozen=True, slots=True)
class DatasetOptions:
    """What is asked."""

    dataset_name: str = option("random", "kind of prompts", choices=DATASETS)
    dataset_path: str | None = option(None, "JSON file of the sharegpt data set", kind=str)
    random_input_len: int = option(1024, "tokens of a random prompt")
    random_output_len: int = option(128, "tokens to generate for it")
    random_range_ratio: float = option(0.0, "lengths are drawn from len * (1 - R) to len * (1 + R)")
    sharegpt_output_len: int | None = option(None, "tokens to generate; the answer's length in the file when omitted", kind=int)
    prefix_repetition_prefix_len: int = option(256, "tokens of a shared prefix")
    prefix_repetition_suffix_len: int = option(256, "tokens of a prompt's own end")
    prefix_repetition_num_prefixes: int = option(10, "shared prefixes")
    prefix_repetition_output_len: int = option(128, "tokens to generate")


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What is reported."""

    percentile_metrics: str = option("ttft,tpot,itl,e2el", "latencies to report, with commas between")
    metric_percentiles: str = option("99", "their percentiles, with commas between")
    goodput: list[str] = option([], "bounds in milliseconds, such as ttft:500 tpot:50 e2el:9000; requests that meet all count")
    limit_model: str | None = option(
        None, "the served model's files, where the server runs on this machine: adds the share of the machine's limit", kind=str
    )
    limit_dtype: str = _served(ModelOptions, "dtype", "the served model's --dtype")
    limit_quantization: str = _served(ModelOptions, "quantization", "the served model's --quantization")
    limit_kv_cache_dtype: str = _served(CacheOptions, "kv_cache_dtype", "the served model's --kv-cache-dtype")
    save_result: str | None = option(None, "JSON file for the figures and each request's", kind=str)


@dataclass(frozen=True, slots=True)
class ThroughputOptions:
    """Many requests at once."""

    input_len: int = option(128, "tokens of a prompt")
    output_len: int = option(128, "tokens to generate for it")
    num_prompts: int = option(64, "requests")
    output_json: str | None = option(None, "JSON file for the figures", kind=str)


@dataclass(frozen=True, slots=True)
class LatencyOptions:
    """One batch after another."""

    input_len: int = option(32, "tokens of a prompt")
    output_len: int = option(128, "tokens to generate for it")
    batch_size: int = option(8, "requests at once")
    num_iters: int = option(10, "batches measured")
    num_iters_warmup: int = option(2, "batches before that")
    output_json: str | None = option(None, "JSON file for the figures", kind=str)
