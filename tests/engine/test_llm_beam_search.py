"""``LLM.beam_search`` on a tiny Llama in float32 against transformers' own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import write_tiny_llama
from transformers import LlamaForCausalLM

from octavo import LLM, BeamSearchParams
from octavo.errors import InvalidRequestError

PROMPTS = [[5, 9, 17, 30], [40, 41], list(range(3, 33))]
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llm(checkpoint: Path) -> Iterator[LLM]:
    with LLM(str(checkpoint), dtype="float32", quantization="none", kv_cache_memory_bytes=4 * 2**20) as one:
        yield one


def transformers_beams(checkpoint: Path, prompt: list[int], width: int, length_penalty: float) -> list[tuple[list[int], float]]:
    """Tokens and scores, best first; nothing ends a beam but its length."""
    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        found = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=NEW_TOKENS,
            length_penalty=length_penalty,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
    return list(zip(found.sequences.tolist(), found.sequences_scores.tolist(), strict=True))


@pytest.mark.parametrize(("width", "length_penalty"), [(2, 1.0), (3, 0.0), (6, 0.5)])
def test_beams_and_scores_are_those_of_transformers(llm: LLM, checkpoint: Path, width: int, length_penalty: float) -> None:
    params = BeamSearchParams(beam_width=width, max_tokens=NEW_TOKENS, ignore_eos=True, length_penalty=length_penalty)
    outputs = llm.beam_search(PROMPTS, params)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        known = transformers_beams(checkpoint, prompt, width, length_penalty)
        assert [beam.tokens for beam in output.sequences] == [tokens for tokens, _ in known]
        scores = [beam.cum_logprob / NEW_TOKENS**length_penalty for beam in output.sequences]
        assert scores == pytest.approx([score for _, score in known], abs=1e-4)
        for beam in output.sequences:
            assert (len(beam.logprobs), beam.finish_reason, beam.stop_reason) == (NEW_TOKENS, "length", None)
            assert beam.text == llm.get_tokenizer().decode(beam.tokens)


def test_an_end_token_ends_a_beam_and_is_kept_only_where_asked_for(llm: LLM) -> None:
    (end,) = llm._model.config.eos_token_ids
    for keep in (False, True):
        params = BeamSearchParams(beam_width=8, max_tokens=6, length_penalty=0.0, include_stop_str_in_output=keep)
        (output,) = llm.beam_search({"prompt_token_ids": PROMPTS[0]}, params)
        ended = [beam for beam in output.sequences if beam.finish_reason == "stop"]
        assert len(output.sequences) == 8
        assert all((beam.tokens[-1] == end) == keep and len(beam.logprobs) == len(beam.tokens) - 4 + (not keep) for beam in ended)
    assert llm.get_metrics()["kv_usage"] == 0.0


def test_a_beam_search_that_the_context_cannot_hold_is_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="256 tokens"):
        llm.beam_search([PROMPTS[0]], BeamSearchParams(beam_width=2, max_tokens=400))
    assert llm.beam_search([], BeamSearchParams(beam_width=2, max_tokens=4)) == []
