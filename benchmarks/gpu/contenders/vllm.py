"""vLLM, where it is installed."""

from __future__ import annotations

from typing import Any

from contenders import Settings, Unsuited


class _VLLM:
    def __init__(self, settings: Settings) -> None:
        try:
            from vllm import LLM, SamplingParams
        except ImportError as error:
            raise Unsuited(f"vLLM cannot be imported: {error}") from None
        self._params: Any = SamplingParams
        self._llm: Any = LLM(
            model=str(settings.model),
            load_format="dummy",
            skip_tokenizer_init=True,
            max_model_len=settings.longest,
            max_num_seqs=settings.sequences,
            enable_prefix_caching=False,
        )

    def generate(self, prompts: list[list[int]], new_tokens: int) -> None:
        params = self._params(temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
        outputs = self._llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        if any(len(output.outputs[0].token_ids) != new_tokens for output in outputs):
            raise RuntimeError("a request has fewer tokens than were asked for")


def load(settings: Settings) -> _VLLM:
    """An engine with dummy weights."""
    return _VLLM(settings)
