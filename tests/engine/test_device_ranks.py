"""Ranks whose devices sample: the tokens of one such device, whoever draws them."""

from __future__ import annotations

from pathlib import Path

import pytest
from family_checkpoints import save_checkpoint
from sampling_ranks import install
from tiny_checkpoint import VOCAB, write_tiny_llama

from octavo.config import engine_options
from octavo.engine.core import EngineCore
from octavo.engine.messages import AddRequest
from octavo.models.hub import ModelFiles
from octavo.sampling_params import SamplingParams
from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary

EOS = 2
LETTERS = [bytes([ord("0") + token]) for token in range(VOCAB)]
LAYOUTS = [(2, 1), (4, 1), (1, 2), (2, 2)]
ASKED = [
    ([5, 9, 33, 51, 8], {"temperature": 0.0}),
    (list(range(3, 60)), {"temperature": 0.9, "top_p": 0.9, "top_k": 20}),
    ([50, 4] * 9, {"temperature": 0.7, "min_p": 0.05}),
    # These the host of the first rank of the last stage draws.
    ([7, 8, 9], {"temperature": 0.8, "repetition_penalty": 1.3, "logprobs": 2}),
    ([11, 12, 13, 14], {"temperature": 0.0, "prompt_logprobs": 1}),
    ([20, 21], {"temperature": 0.5, "structured_outputs": StructuredOutputs(regex="[0-9a-f]{4,12}")}),
]


@pytest.fixture(autouse=True)
def devices_that_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)


def run(folder: Path, tensor: int, pipeline: int) -> tuple[list[list[int]], list[object]]:
    """All answers' tokens, and what was scored beside them."""
    options = engine_options(
        tensor_parallel_size=tensor,
        pipeline_parallel_size=pipeline,
        dtype="float32",
        threads=2,
        kv_cache_memory_bytes=2**21,
        max_num_batched_tokens=32,
        max_model_len=96,
    )
    core = EngineCore(options, ModelFiles("tiny", "hf", folder))
    assert core._executor.depth == max(1, pipeline - 1), "a step is planned while devices are at another"
    core.handle(Vocabulary(LETTERS, [], [EOS]))
    tokens: dict[str, list[int]] = {str(number): [] for number in range(len(ASKED))}
    scores: list[object] = []
    for number, (prompt, params) in enumerate(ASKED):
        core.handle(AddRequest(str(number), prompt, SamplingParams(max_tokens=14, **params), seed=number))
    while core.has_work():
        output = core.step()
        for update in output.updates if output is not None else ():
            assert update.finish_reason != "error", update.stop_reason
            tokens[update.request_id] += update.token_ids
            scores += [
                (update.request_id, scored.token_ids, [round(value, 3) for value in scored.logprobs])
                for scored in (*(update.logprobs or ()), *(update.prompt_logprobs or ()))
            ]
    core.shutdown()
    return list(tokens.values()), sorted(scores, key=str)


def test_tokens_and_scores_are_those_of_one_device(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path)
    expected = run(folder, 1, 1)
    assert all(expected[0]) and expected[1]
    for layout in LAYOUTS:
        assert run(folder, *layout) == expected, layout


def test_shares_that_differ_make_no_difference(tmp_path: Path) -> None:
    """Three stages of four layers, each on two ranks with a head each of two."""
    save_checkpoint("gemma3", tmp_path)
    assert run(tmp_path, 2, 3) == run(tmp_path, 1, 1)
