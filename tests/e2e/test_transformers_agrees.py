"""The embedded default, dequantised, against transformers on twenty prompts."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedModel

from octavo import LLM, SamplingParams
from octavo.models.hub import resolve

PROMPTS = [
    "The capital of France is",
    "Water boils at",
    "def quicksort(items):\n    ",
    "In 1969, humans first",
    "The chemical symbol for gold is",
    "My favourite recipe starts with",
    "Once upon a time, in a small village",
    "The derivative of x squared is",
    "SELECT name FROM users WHERE",
    "The opposite of hot is",
    "Shakespeare wrote",
    "To reset a password,",
    "A haiku about rain:\n",
    "The speed of light is about",
    "Photosynthesis is the process",
    "El perro y el gato",
    "1, 1, 2, 3, 5, 8,",
    "Dear hiring manager,",
    "The mitochondria is",
    "Paris, London, Rome,",
]
NEW_TOKENS = 24
MARGINS = {"float32": 1e-3, "bfloat16": 0.08}
"""Where transformers' best two float32 logits are closer than this, rounding in the type may pick either. Logits here are about 20, and
bfloat16 keeps 8 bits of each product's inputs, layer after layer."""


@pytest.fixture(scope="module")
def oracle() -> PreTrainedModel:
    files = resolve(None)
    return AutoModelForCausalLM.from_pretrained(
        files.path.parent, gguf_file=files.path.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    ).eval()


@pytest.mark.parametrize("dtype", list(MARGINS))
def test_greedy_tokens_are_transformers_best_at_every_position(dtype: str, oracle: PreTrainedModel) -> None:
    with LLM(dtype=dtype, quantization="none", max_model_len=256, kv_cache_memory_bytes=128 * 2**20) as llm:
        outputs = llm.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True), use_tqdm=False)
    others = 0
    for output in outputs:
        prompt, chosen = output.prompt_token_ids, output.outputs[0].token_ids
        assert len(chosen) == NEW_TOKENS
        with torch.inference_mode():
            logits = oracle(torch.tensor([prompt + chosen])).logits[0, len(prompt) - 1 : -1]
        picked = logits.gather(1, torch.tensor(chosen)[:, None])[:, 0]
        shortfall = logits.max(dim=1).values - picked
        assert shortfall.max().item() < MARGINS[dtype], f"{output.prompt!r} departs from transformers by {shortfall.max().item()}"
        others += int((shortfall > 0).sum())
    assert others <= (2 if dtype == "float32" else 12)  # of 480
