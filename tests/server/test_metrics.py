"""The metrics: names, labels, and what a request adds to them."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from octavo.engine.messages import EngineStats
from octavo.errors import EngineDeadError
from octavo.metrics import FINISH_REASONS, EngineFigures, Histogram, Metrics, RestartProofCounter

PROMISED = {
    "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total", "vllm:num_preemptions_total", "vllm:prompt_tokens_total", "vllm:generation_tokens_total",
    "vllm:request_success_total", "vllm:time_to_first_token_seconds_bucket", "vllm:inter_token_latency_seconds_bucket",
    "vllm:e2e_request_latency_seconds_bucket", "vllm:request_queue_time_seconds_bucket", "vllm:request_prefill_time_seconds_bucket",
    "vllm:request_decode_time_seconds_bucket", "vllm:request_prompt_tokens_bucket", "vllm:request_generation_tokens_bucket",
    "vllm:iteration_tokens_total_bucket", "vllm:cache_config_info", "octavo:kv_cache_waste_ratio", "octavo:memory_plan_bytes",
    "octavo:engine_resident_memory_bytes", "octavo:preemptions_total",
}  # fmt: skip


async def read(url: str) -> dict[str, Any]:
    """Samples by name and by the labels besides those every metric has."""
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"{url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found: dict[str, Any] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            extra = tuple(value for name, value in sorted(sample.labels.items()) if name not in ("model_name", "engine"))
            found.setdefault(sample.name, {})[extra] = sample.value
            if sample.name.startswith(("vllm:", "octavo:")) and sample.name != "vllm:cache_config_info":
                assert sample.labels["model_name"] == "fake-model" and sample.labels["engine"] == "0", sample
    return found


async def test_every_promised_name_is_there_and_parses(engine: Any, url: str) -> None:
    async with httpx.AsyncClient() as http:
        await http.post(f"{url}/v1/completions", json={"prompt": "abc"})
    assert set(await read(url)) >= PROMISED


async def test_a_request_is_counted_once(engine: Any, url: str) -> None:
    async with httpx.AsyncClient() as http:
        for stream in (True, False):
            await http.post(f"{url}/v1/completions", json={"prompt": "abc", "n": 2, "stream": stream})
        await http.post(f"{url}/v1/completions", json={"prompt": "abc", "max_tokens": 2})
    found = await read(url)
    assert found["vllm:prompt_tokens_total"][()] == 3 * 4 and found["vllm:generation_tokens_total"][()] == 2 * 11 + 2
    assert found["vllm:request_success_total"] == {("stop",): 2, ("length",): 1, ("abort",): 0, ("error",): 0}
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds", "request_prompt_tokens"):
        assert found[f"vllm:{name}_count"][()] == 3, name
    assert found["vllm:request_generation_tokens_sum"][()] == 24
    assert found["vllm:inter_token_latency_seconds_count"][()] == 24 - 5  # the first token of each of five sequences has none before it
    assert found["vllm:iteration_tokens_total_count"][()] == 3 * 6 - 4  # n=2 answers take six steps, max_tokens=2 takes two
    assert found["octavo:memory_plan_bytes"] == {("weights",): 1000, ("kv_cache",): 500}
    assert found["octavo:preemptions_total"] == {("pages",): 2} and found["vllm:num_preemptions_total"][()] == 2


LABELS_OF = {
    "vllm:cache_config_info": {"engine", "block_size", "num_gpu_blocks", "cache_dtype", "enable_prefix_caching"},
    "vllm:request_success": {"model_name", "engine", "finished_reason"},
    "octavo:memory_plan_bytes": {"model_name", "engine", "part"},
    "octavo:preemptions": {"model_name", "engine", "reason"},
}


async def stir(engine: Any, url: str) -> None:
    """Every way in which a request can end, with names of the client's own wherever it may give some."""
    own = {"request_id": "client-made", "user": "client-made", "cache_salt": "client-made", "metadata": {"client-made": "1"}}
    async with httpx.AsyncClient(headers={"x-request-id": "client-made"}) as http:
        for fields in ({}, {"max_tokens": 2}, {"stream": True}, {"n": 2, "best_of": 2}, {"temperature": -1}, {"model": "client-made"}):
            await http.post(f"{url}/v1/completions", json={"prompt": "abc", **own, **fields})
        await http.get(f"{url}/client-made")
        engine.hold.clear()
        for stream in (True, False):
            before = len(engine.submitted)
            task = asyncio.create_task(http.post(f"{url}/v1/completions", json={"prompt": "abc", "stream": stream, **own}))
            while len(engine.submitted) == before:
                await asyncio.sleep(0.005)
            task.cancel()
        engine.error = EngineDeadError("gone")
        engine.hold.set()
        for stream in (True, False):
            await http.post(f"{url}/v1/completions", json={"prompt": "abc", "stream": stream, **own})
        engine.error = None
        while (await http.get(f"{url}/load")).json()["server_load"]:
            await asyncio.sleep(0.005)


async def test_labels_are_a_closed_set_whatever_clients_send(engine: Any, url: str) -> None:
    await stir(engine, url)
    async with httpx.AsyncClient() as http:
        text = (await http.get(f"{url}/metrics")).text
    assert "client-made" not in text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = set(sample.labels) - {"le"}
            if family.name.startswith(("vllm:", "octavo:")):
                assert labels == LABELS_OF.get(family.name, {"model_name", "engine"}), sample
                assert sample.labels.get("finished_reason", "stop") in FINISH_REASONS
            else:
                assert family.name.startswith("process_") and not labels, sample


async def test_every_end_is_counted_once_under_its_own_reason(engine: Any, url: str) -> None:
    await stir(engine, url)
    found = await read(url)
    assert found["vllm:request_success_total"] == {("stop",): 3, ("length",): 1, ("abort",): 2, ("error",): 2}
    for name in ("e2e_request_latency_seconds", "request_prompt_tokens", "request_generation_tokens"):
        assert found[f"vllm:{name}_count"][()] == 8, name
    for name in ("request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds"):
        assert found[f"vllm:{name}_count"][()] == 4, name  # only the engine knows these, and only of what it finished
    assert set(found) >= PROMISED


async def test_histograms_are_cumulative_and_end_in_their_count(engine: Any, url: str) -> None:
    await stir(engine, url)
    async with httpx.AsyncClient() as http:
        text = (await http.get(f"{url}/metrics")).text
    families = [family for family in text_string_to_metric_families(text) if family.type == "histogram"]
    assert len(families) == 9
    for family in families:
        buckets = [sample.value for sample in family.samples if sample.name.endswith("_bucket")]
        (count,) = [sample.value for sample in family.samples if sample.name.endswith("_count")]
        assert buckets == sorted(buckets) and buckets[-1] == count, family.name


async def test_counters_do_not_go_back_when_the_engine_restarts(engine: Any, url: str) -> None:
    engine.stats = EngineStats(prefix_queries=100, prefix_hits=40, preemptions={"pages": 3})
    await read(url)
    engine.stats = EngineStats(prefix_queries=10, prefix_hits=1)
    found = await read(url)
    assert found["vllm:prefix_cache_queries_total"][()] == 110 and found["vllm:prefix_cache_hits_total"][()] == 41
    assert found["vllm:num_preemptions_total"][()] == 3


def test_restart_proof_counter_sums_over_lives() -> None:
    counter = RestartProofCounter()
    assert [counter.read(value) for value in (1, 5, 5, 2, 3, 0, 4)] == [1, 5, 5, 7, 8, 8, 12]


def test_histogram_counts_a_bound_into_its_own_bucket() -> None:
    histogram = Histogram((1.0, 2.0))
    for value, times in ((0.5, 1), (1.0, 2), (1.5, 1), (9.0, 3)):
        histogram.observe(value, times)
    assert histogram.buckets() == [("1.0", 3.0), ("2.0", 4.0), ("+Inf", 7.0)] and histogram.total == 31.0


def test_unknown_resident_memory_is_left_out() -> None:
    metrics = Metrics()
    metrics.engines[0].update(EngineFigures(rss_bytes=-1))
    assert b"engine_resident_memory" not in metrics.render()
