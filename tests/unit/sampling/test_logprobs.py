"""Log probabilities: values against float64, ranks and lists by falling logit and rising id."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.errors import InvalidLogitsError
from octavo.sampling import logprobs as module
from octavo.sampling.logprobs import prompt_logprobs, token_logprobs


def oracle(row: torch.Tensor) -> tuple[np.ndarray, list[int]]:
    x = row.double().numpy()
    shifted = x - x.max()
    order: list[int] = np.lexsort((np.arange(len(x)), -x)).tolist()
    with np.errstate(divide="ignore"):
        return shifted - np.log(np.exp(shifted).sum()), order


@pytest.mark.parametrize("count", [0, 1, 5, 20, 300, -1, 5000])
@pytest.mark.parametrize("rounded", [False, True])
def test_values_lists_and_ranks(count: int, rounded: bool) -> None:
    logits = torch.randn(7, 2003, generator=torch.Generator().manual_seed(0)) * 3
    if rounded:
        logits = logits.round()
    before = logits.clone()
    chosen = [0, 2002, 5, 1000, int(logits[4].argmax()), int(logits[5].argmin()), 77]
    found = prompt_logprobs(logits, chosen, count)
    assert torch.equal(logits, before)
    for row, token, entry in zip(logits, chosen, found, strict=True):
        expected, order = oracle(row)
        wanted = order[: 2003 if count < 0 else count]
        assert entry.token_ids == [token, *wanted]
        assert entry.rank == order.index(token) + 1
        np.testing.assert_allclose(entry.logprobs, expected[entry.token_ids], rtol=1e-5, atol=1e-5)
        assert entry.logprobs[1:] == sorted(entry.logprobs[1:], reverse=True)


def test_the_torch_ranks_of_other_devices_are_those_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(20, 500, generator=torch.Generator().manual_seed(1)).round()
    chosen = list(range(0, 500, 25))
    on_cpu = module._ranks(logits, chosen)
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    assert module._ranks(logits, chosen) == on_cpu


def test_rows_come_in_the_order_asked_and_originals_replace_edited_ones() -> None:
    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(2))
    original = torch.randn(100, generator=torch.Generator().manual_seed(3))
    found = token_logprobs(logits, [(3, 10), (0, 20)], 2, {0: original})
    assert found == [prompt_logprobs(logits[3:], [10], 2)[0], prompt_logprobs(original.unsqueeze(0), [20], 2)[0]]


def test_a_rows_values_are_the_same_bits_in_any_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(1003, generator=torch.Generator().manual_seed(4)).repeat(30, 1)
    alone = prompt_logprobs(logits[:1].clone(), [9], 7)
    for elements in (1, 5000, 2**20):
        monkeypatch.setattr("octavo.sampling.rows.CPU_CHUNK_ELEMENTS", elements)
        assert prompt_logprobs(logits, [9] * 30, 7) == alone * 30


def test_impossible_tokens_have_minus_infinity() -> None:
    logits = torch.tensor([[0.0, float("-inf"), 0.0]])
    entry = prompt_logprobs(logits, [1], -1)[0]
    assert entry.token_ids == [1, 0, 2, 1]
    assert entry.rank == 3
    np.testing.assert_allclose(entry.logprobs, [-np.inf, np.log(0.5), np.log(0.5), -np.inf])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused_with_the_row_named(bad: float) -> None:
    logits = torch.zeros(3, 50)
    logits[1, 40] = bad
    with pytest.raises(InvalidLogitsError) as caught:
        prompt_logprobs(logits, [0, 0, 0], 1)
    assert caught.value.rows == [1]


def test_no_rows_give_no_entries() -> None:
    assert prompt_logprobs(torch.zeros(0, 10), [], 3) == []
