"""Promise 3 on the embedded default in every precision: a request's tokens do not depend on what else happens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from octavo import LLM, SamplingParams

LONG = "The following is a short lecture about rivers, mountains and the people who live between them. " * 6
TARGETS = ["The three primary colours are", LONG + "Rivers begin", "def fibonacci(n):\n", "Dear Sir or Madam,"]
OTHERS = [f"Write {i} words about the number {i * 37}. " * (1 + i % 5) for i in range(32)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
SEEDED = SamplingParams(temperature=0.8, seed=1234, max_tokens=40, ignore_eos=True)
LENGTHS: dict[str, Any] = {"max_model_len": 1024, "kv_cache_memory_bytes": 256 * 2**20}
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32", "quantization": "none"},
    "bfloat16": {"dtype": "bfloat16", "quantization": "none"},
    "4-bit": {"dtype": "bfloat16", "quantization": "auto"},
    "4-bit, rows of 8 bits": {"dtype": "bfloat16", "quantization": "auto", "activation_bits": 8},
    "int8": {"dtype": "bfloat16", "quantization": "int8"},
    "int4": {"dtype": "bfloat16", "quantization": "int4"},
    "int8 cache": {"dtype": "bfloat16", "kv_cache_dtype": "int8"},
}

Alone = dict[str, list[list[int]]]
"""The targets' tokens when each runs alone on an empty cache, greedy and seeded."""
PARAMS = {"greedy": GREEDY, "seeded": SEEDED}


@pytest.fixture(scope="module", params=list(PRECISIONS))
def flags(request: pytest.FixtureRequest) -> dict[str, Any]:
    return PRECISIONS[request.param]


@pytest.fixture(scope="module")
def llm(flags: dict[str, Any]) -> Iterator[LLM]:
    with LLM(**LENGTHS, **flags) as model:
        yield model


def tokens(llm: LLM, prompts: list[str], params: SamplingParams) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]


@pytest.fixture(scope="module")
def alone(llm: LLM) -> Alone:
    results: Alone = {}
    for name, params in PARAMS.items():
        results[name] = []
        for prompt in TARGETS:
            llm.reset_prefix_cache()
            results[name] += tokens(llm, [prompt], params)
    llm.reset_prefix_cache()
    return results


@pytest.mark.parametrize("kind", list(PARAMS))
def test_in_a_batch_of_thirty_two_others(llm: LLM, alone: Alone, kind: str) -> None:
    mixed = tokens(llm, [*OTHERS[:16], *TARGETS, *OTHERS[16:]], PARAMS[kind])
    assert mixed[16:20] == alone[kind]


@pytest.mark.parametrize("kind", list(PARAMS))
def test_with_a_prefix_cache_hit(llm: LLM, alone: Alone, kind: str) -> None:
    llm.generate([TARGETS[1]], PARAMS[kind], use_tqdm=False)
    again = llm.generate([TARGETS[1]], PARAMS[kind], use_tqdm=False)[0]
    assert again.num_cached_tokens > 64
    assert again.outputs[0].token_ids == alone[kind][1]


@pytest.mark.parametrize("threads", [1, 3])
def test_with_other_threads_and_the_prompt_in_chunks(flags: dict[str, Any], alone: Alone, threads: int) -> None:
    with LLM(**LENGTHS, **flags, threads=threads, max_num_batched_tokens=24, max_num_seqs=8) as chunked:
        for kind, params in PARAMS.items():
            assert tokens(chunked, TARGETS, params) == alone[kind]


def test_after_forced_preemption(flags: dict[str, Any], alone: Alone) -> None:
    # Sixteen pages hold one or two of the four sequences to their end: someone has to give way.
    value_bytes = 1 if flags.get("kv_cache_dtype") == "int8" else 4 if flags["dtype"] == "float32" else 2
    scale_bytes = 4 if value_bytes == 1 else 0
    page = 16 * 30 * 2 * 3 * (64 * value_bytes + scale_bytes)
    with LLM(**(LENGTHS | {"max_model_len": 256, "kv_cache_memory_bytes": 16 * page}), **flags, enable_prefix_caching=False) as tight:
        for kind, params in PARAMS.items():
            assert tokens(tight, TARGETS, params) == alone[kind]
        assert tight.get_metrics()["preemptions"]["out_of_blocks"] > 0


def test_siblings_of_one_request_equal_their_seeds(llm: LLM) -> None:
    many = SamplingParams(temperature=0.9, seed=7, n=4, max_tokens=24, ignore_eos=True)
    first = [output.token_ids for output in llm.generate([TARGETS[0]], many, use_tqdm=False)[0].outputs]
    batch = llm.generate([*OTHERS, TARGETS[0]], [GREEDY] * len(OTHERS) + [many], use_tqdm=False)
    assert [output.token_ids for output in batch[-1].outputs] == first
    assert len({tuple(sequence) for sequence in first}) > 1
