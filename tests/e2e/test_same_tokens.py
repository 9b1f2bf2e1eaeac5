"""Promise 3 on the embedded default in float32: a request's tokens do not depend on what else happens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from octavo import LLM, SamplingParams

LONG = "The following is a short lecture about rivers, mountains and the people who live between them. " * 6
TARGETS = ["The three primary colours are", LONG + "Rivers begin", "def fibonacci(n):\n", "Dear Sir or Madam,"]
OTHERS = [f"Write {i} words about the number {i * 37}. " * (1 + i % 5) for i in range(32)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
SEEDED = SamplingParams(temperature=0.8, seed=1234, max_tokens=40, ignore_eos=True)
FLAGS = {"dtype": "float32", "max_model_len": 1024, "kv_cache_memory_bytes": 256 * 2**20}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(**FLAGS) as model:
        yield model


def tokens(llm: LLM, prompts: list[str], params: SamplingParams) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]


@pytest.fixture(scope="module", params=[GREEDY, SEEDED], ids=["greedy", "seeded"])
def case(request: pytest.FixtureRequest, llm: LLM) -> tuple[SamplingParams, list[list[int]]]:
    """Sampling parameters and the targets' tokens when each runs alone on an empty cache."""
    alone = []
    for prompt in TARGETS:
        llm.reset_prefix_cache()
        alone += tokens(llm, [prompt], request.param)
    llm.reset_prefix_cache()
    return request.param, alone


def test_in_a_batch_of_thirty_two_others(llm: LLM, case: tuple[SamplingParams, list[list[int]]]) -> None:
    params, alone = case
    mixed = tokens(llm, [*OTHERS[:16], *TARGETS, *OTHERS[16:]], params)
    assert mixed[16:20] == alone


def test_with_a_prefix_cache_hit(llm: LLM, case: tuple[SamplingParams, list[list[int]]]) -> None:
    params, alone = case
    llm.generate([TARGETS[1]], params, use_tqdm=False)
    again = llm.generate([TARGETS[1]], params, use_tqdm=False)[0]
    assert again.num_cached_tokens > 64
    assert again.outputs[0].token_ids == alone[1]


def test_with_the_prompt_in_chunks(case: tuple[SamplingParams, list[list[int]]]) -> None:
    params, alone = case
    with LLM(**FLAGS, max_num_batched_tokens=24, max_num_seqs=8) as chunked:
        assert tokens(chunked, TARGETS, params) == alone


def test_after_forced_preemption(case: tuple[SamplingParams, list[list[int]]]) -> None:
    params, alone = case
    # Sixteen pages hold one or two of the four sequences to their end: someone has to give way.
    pages = 16 * 16 * 30 * 2 * 3 * 64 * 4
    with LLM(dtype="float32", max_model_len=256, kv_cache_memory_bytes=pages, enable_prefix_caching=False) as tight:
        assert tokens(tight, TARGETS, params) == alone
        assert tight.get_metrics()["preemptions"]["out_of_blocks"] > 0


def test_siblings_of_one_request_equal_their_seeds(llm: LLM) -> None:
    many = SamplingParams(temperature=0.9, seed=7, n=4, max_tokens=24, ignore_eos=True)
    first = [output.token_ids for output in llm.generate([TARGETS[0]], many, use_tqdm=False)[0].outputs]
    batch = llm.generate([*OTHERS, TARGETS[0]], [GREEDY] * len(OTHERS) + [many], use_tqdm=False)
    assert [output.token_ids for output in batch[-1].outputs] == first
    assert len({tuple(sequence) for sequence in first}) > 1
