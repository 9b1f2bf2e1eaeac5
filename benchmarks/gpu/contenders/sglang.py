"""SGLang, where it is installed."""

from __future__ import annotations

from typing import Any

from contenders import Settings, Unsuited


class _SGLang:
    def __init__(self, settings: Settings) -> None:
        try:
            import sglang
        except ImportError as error:
            raise Unsuited(f"SGLang cannot be imported: {error}") from None
        self._engine: Any = sglang.Engine(
            model_path=str(settings.model),
            load_format="dummy",
            skip_tokenizer_init=True,
            context_length=settings.longest,
            max_running_requests=settings.sequences,
            disable_radix_cache=True,
        )

    def generate(self, prompts: list[list[int]], new_tokens: int) -> None:
        params = {"temperature": 0.0, "max_new_tokens": new_tokens, "ignore_eos": True}
        outputs = self._engine.generate(input_ids=prompts, sampling_params=params)
        if any(output["meta_info"]["completion_tokens"] != new_tokens for output in outputs):
            raise RuntimeError("a request has fewer tokens than were asked for")


def load(settings: Settings) -> _SGLang:
    """An engine with dummy weights."""
    return _SGLang(settings)
