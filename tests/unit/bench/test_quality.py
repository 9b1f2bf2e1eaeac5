"""What a precision costs: the figures against a plain computation, and whole measurements of a tiny model."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import VOCAB, write_tiny_llama

from octavo.bench import quality
from octavo.bench.quality import TEXT, Quality, compare_rows, cut_windows, measure_quality
from octavo.config import engine_options
from octavo.errors import ConfigError, MemoryPlanError, ModelLoadError, OctavoError
from octavo.frontend.tokenizer import Tokenizer, load_tokenizer
from octavo.models.hub import ModelFiles, resolve
from octavo.models.loader import read_model_config
from octavo.runner import memory_plan

WORDS = " ".join(f"t{index * index % VOCAB}" for index in range(90))
FLAGS: dict[str, Any] = {"device": "cpu", "dtype": "bfloat16", "threads": 1}


def log_probabilities(logits: torch.Tensor) -> list[float]:
    weights = [math.exp(logit) for logit in logits.tolist()]
    return [math.log(weight / sum(weights)) for weight in weights]


def test_rows_are_compared_as_the_formulas_say() -> None:
    generator = torch.Generator().manual_seed(3)
    ours, reference = (torch.randn(6, 11, generator=generator) * 2 for _ in range(2))
    next_ids = torch.tensor([0, 10, 3, 3, 7, 1])
    rows = compare_rows(ours, reference, next_ids)
    for row in range(6):
        q, p = (log_probabilities(logits[row]) for logits in (ours, reference))
        assert rows.kl[row].item() == pytest.approx(sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)), rel=1e-12)
        assert rows.same[row].item() == (p.index(max(p)) == q.index(max(q)))
        assert rows.nll[row].item() == pytest.approx(-q[next_ids[row]], rel=1e-12)
        assert rows.reference_nll[row].item() == pytest.approx(-p[next_ids[row]], rel=1e-12)


def test_equal_scores_do_not_diverge() -> None:
    logits = torch.randn(4, 1000) * 20
    rows = compare_rows(logits, logits.clone(), torch.zeros(4, dtype=torch.int64))
    assert rows.kl.tolist() == [0.0] * 4 and rows.same.all()
    shifted = compare_rows(logits + 1.0, logits, torch.zeros(4, dtype=torch.int64))
    assert shifted.kl.min() >= 0.0 and shifted.kl.max() < 1e-9


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_an_error(value: float) -> None:
    damaged = torch.zeros(2, 5)
    damaged[1, 2] = value
    with pytest.raises(OctavoError, match="not numbers"):
        compare_rows(damaged, torch.zeros(2, 5), torch.tensor([0, 0]))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return resolve(str(write_tiny_llama(tmp_path_factory.mktemp("tiny"))))


def test_windows_hold_the_text_in_order(files: ModelFiles) -> None:
    tokenizer = load_tokenizer(files)
    windows = cut_windows(tokenizer, WORDS, 40)
    assert [len(window) for window in windows] == [40, 40, 10]
    assert [token for window in windows for token in window] == tokenizer.encode(WORDS)
    assert len(cut_windows(tokenizer, WORDS, 89)) == 1  # the last token would be alone


class Beginning:
    """A tokenizer of letters that begins a text with the token 99."""

    bos_token_id = 99

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [99] * add_special_tokens + [ord(letter) - ord("a") for letter in text]


def test_each_window_begins_as_a_text_does() -> None:
    tokenizer: Any = Beginning()
    assert cut_windows(tokenizer, "abcde", 3) == [[99, 0, 1], [99, 2, 3], [99, 4]]


def test_a_text_that_the_tokenizer_knows_nothing_of_is_refused(files: ModelFiles) -> None:
    tokenizer: Tokenizer = load_tokenizer(files)
    with pytest.raises(ModelLoadError, match="makes 0 tokens"):
        cut_windows(tokenizer, "", 40)
    with pytest.raises(ConfigError, match="max_model_len=1"):
        cut_windows(tokenizer, WORDS, 1)


def measured(files: ModelFiles, **options: Any) -> Quality:
    return measure_quality(files, engine_options(**(FLAGS | options)), WORDS)


def test_the_same_model_does_not_diverge(files: ModelFiles) -> None:
    same = measured(files, quantization="none")
    assert (same.kl_mean, same.kl_p99, same.kl_max, same.top1_agreement) == (0.0, 0.0, 0.0, 100.0)
    assert same.perplexity == same.reference_perplexity
    assert (same.tokens, same.window, same.positions, same.notes) == (90, 90, 89, ())


def test_what_diverges_more_is_measured_to(files: ModelFiles) -> None:
    int8, int4, cache = measured(files, quantization="int8"), measured(files, quantization="int4"), measured(files, kv_cache_dtype="int8")
    assert 0.0 < cache.kl_mean < int4.kl_mean and 0.0 < int8.kl_mean < int4.kl_mean
    assert int4.kl_mean < int4.kl_p99 <= int4.kl_max
    assert int8.reference_perplexity == int4.reference_perplexity != int4.perplexity
    assert "int4" in int4.compared and "KV cache int8" in cache.compared and "bfloat16" in int4.reference


def test_a_short_context_makes_short_windows(files: ModelFiles) -> None:
    short = measured(files, quantization="none", max_model_len=16)
    assert (short.tokens, short.window, short.positions) == (90, 16, 84)
    assert short.perplexity != measured(files, quantization="none").perplexity


def test_threads_are_those_asked_for(files: ModelFiles) -> None:
    measured(files, threads=2)
    assert torch.get_num_threads() == 2
    measured(files, threads=1)
    assert torch.get_num_threads() == 1


def test_random_weights_are_refused(files: ModelFiles) -> None:
    with pytest.raises(ConfigError, match="dummy"):
        measured(files, load_format="dummy")


def test_another_models_tokenizer_is_refused(files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_model_config(files)
    monkeypatch.setattr(quality, "read_model_config", lambda files: dataclasses.replace(config, vocab_size=40))
    with pytest.raises(ModelLoadError, match="the model has 40 tokens"):
        measured(files)


def test_a_reference_that_does_not_fit_is_said(files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    plan_memory = memory_plan.plan_memory

    def tight(config: Any, options: Any, device: Any, formats: Any) -> Any:
        return plan_memory(config, options, device, None if options.model.quantization == "int8" else 1000, formats)

    monkeypatch.setattr(quality, "plan_memory", tight)
    with pytest.raises(MemoryPlanError, match="--quality runs the checkpoint in bfloat16 too"):
        measured(files, quantization="int8")


def test_the_text_is_shipped_and_of_some_length() -> None:
    text = TEXT.read_text(encoding="utf-8")
    assert TEXT.parent == Path(quality.__file__).parent
    assert 8_000 < len(text) < 12_000 and "def " in text and "ü" in text


def test_several_ranks_are_refused(files: ModelFiles) -> None:
    with pytest.raises(ConfigError, match="one rank"):
        measured(files, tensor_parallel_size=2)
