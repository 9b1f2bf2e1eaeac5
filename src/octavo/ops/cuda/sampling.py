"""Sampling a token a row on the GPU; nothing goes back to the host.

    look:   rows, runs of RUN tokens: a program each
                logits [RUN] -> the run's largest, its lowest id, whether a value is NaN or +inf
    cut:    rows that have a filter: a program each, over the whole row again and again (it stays in the level-2 cache)
                eight rounds of four bits: which of 16 thresholds is the last that enough tokens (or enough weight) reach
                -> the least key that is kept, and the last id of those that have just this key
    draw:   rows that draw, runs of RUN tokens: a program each
                logits [RUN] -> (x - largest) / temperature + Gumbel noise of the tokens that are kept -> the largest, its id
    choose: rows: a program each: the best of its runs -> token

A greedy batch is look and choose. A *key* is a float32 as a whole number of the same order, so that a threshold can be searched bit by bit.

What the filters keep is what ``octavo.sampling.filters`` says: min_p, then top_k (of equals the lower ids), then top_p. Weights are
summed in float64 in one order. The draw is the Gumbel trick: the argmax of log-probability plus independent Gumbel noise is a draw
(Gumbel, 1954). Noise is -log(-log u); u comes from Philox4x32-10 (``octavo.sampling.random``) with the sequence's seed as key and the
counter (place, position's low word, its high word, 0): token ``t`` of a run of four QUARTERs has place ``run * QUARTER + t % QUARTER`` and
of the four words the ``t // QUARTER``-th. So a row's token depends on its logits, seed and position alone. u has 23 bits and a half more:
it is never 0 or 1.
"""

# Triton's functions have no types; arguments of kernels cannot have any that mypy knows.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl

from octavo.ops.base import SampleRows
from octavo.ops.cuda.variants import Variant
from octavo.ops.transfer import to_device

QUARTER = 1024
RUN = 4 * QUARTER
"""Tokens of a program: 32 of them have a vocabulary of 128 Ki."""

_CHUNK = 1024
"""Tokens that the search looks at together: with 16 thresholds each, what a program's registers hold."""

_SMALLEST, _LARGEST = np.finfo(np.float32).tiny, np.finfo(np.float32).max


def sample(logits: torch.Tensor, rows: SampleRows) -> torch.Tensor:
    """See ``Ops.sample``."""
    count, vocab_size = logits.shape
    runs = triton.cdiv(vocab_size, RUN)
    device = logits.device
    tokens = torch.empty(count, dtype=torch.int64, device=device)
    if count == 0:
        return tokens
    params = _params(rows, vocab_size, device)
    best = torch.empty((count, runs), dtype=torch.float32, device=device)
    ids = torch.empty((count, runs), dtype=torch.int32, device=device)
    wrong = torch.empty((count, runs), dtype=torch.int32, device=device)
    _look_kernel[(count, runs)](logits, best, ids, wrong, runs, VOCAB=vocab_size, RUN=RUN, num_warps=4)
    scores, drawn = best, ids
    if (rows.temperatures > 0.0).any():
        scores, drawn = torch.empty_like(best), torch.empty_like(ids)
        cuts, lasts = _cuts(logits, best, params)
        _draw_kernel[(count, runs)](
            logits, best, params.factors, params.bars, params.seeds, params.positions, cuts, lasts, scores, drawn, runs,
            VOCAB=vocab_size, QUARTER=QUARTER, RUNS=triton.next_power_of_2(runs), num_warps=4,
        )  # fmt: skip
    _choose_kernel[(count,)](best, ids, wrong, scores, drawn, params.factors, tokens, runs, RUNS=triton.next_power_of_2(runs), num_warps=1)
    return tokens


def _cuts(logits: torch.Tensor, best: torch.Tensor, params: _Params) -> tuple[torch.Tensor, torch.Tensor]:
    """What top_k and top_p keep: int32 [R] least keys, and int32 [R] last ids of those that have just this key."""
    (count, vocab_size), runs = logits.shape, best.shape[1]
    cuts = torch.full((count,), -(2**31), dtype=torch.int32, device=logits.device)
    lasts = torch.full((count,), 2**31 - 1, dtype=torch.int32, device=logits.device)
    if len(params.filtered):
        _cut_kernel[(len(params.filtered),)](
            logits, best, params.filtered, params.factors, params.bars, params.top_ks, params.top_ps, cuts, lasts, runs,
            VOCAB=vocab_size, CHUNK=_CHUNK, RUNS=triton.next_power_of_2(runs), num_warps=16,
        )  # fmt: skip
    return cuts, lasts


@dataclass(frozen=True, slots=True)
class _Params:
    """How rows are sampled, on the device.

    Attributes:
        seeds, positions: int64 [R].
        factors: float32 [R], one over the temperature; 0 for a greedy row.
        bars: float32 [R], how far behind the largest a logit may be under min_p.
        top_ps: float32 [R].
        top_ks: int32 [R], 0 for all.
        filtered: int32, the rows that have top_k or top_p.
    """

    seeds: torch.Tensor
    positions: torch.Tensor
    factors: torch.Tensor
    bars: torch.Tensor
    top_ps: torch.Tensor
    top_ks: torch.Tensor
    filtered: torch.Tensor


def _params(rows: SampleRows, vocab_size: int, device: torch.device) -> _Params:
    """The rows' numbers, brought to the device in one copy."""
    wide = rows.temperatures.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Kept inside float32's normal numbers, so that 0 * factor is 0 and -inf * factor is -inf.
        factors = np.where(wide > 0.0, np.clip(1.0 / np.maximum(wide, _SMALLEST), _SMALLEST, _LARGEST), 0.0)
        bars = np.where(rows.min_ps > 0.0, np.maximum(wide * np.log(rows.min_ps.astype(np.float64)), -_LARGEST), -np.inf)
    top_ks = np.where(rows.top_ks < vocab_size, rows.top_ks, 0).astype(np.int32)
    filtered = np.flatnonzero((wide > 0.0) & ((top_ks > 0) | (rows.top_ps < 1.0))).astype(np.int32)
    floats = [factors.astype(np.float32), bars.astype(np.float32), rows.top_ps]
    return _Params(*to_device([rows.seeds, rows.positions, *floats, top_ks, filtered], device))


@triton.jit
def _key(x):
    """A float32 as int32 of the same order; both zeros are one."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@triton.jit(do_not_specialize=["runs"])
def _look_kernel(logits_ptr, best_ptr, ids_ptr, wrong_ptr, runs, VOCAB: tl.constexpr, RUN: tl.constexpr):
    row = tl.program_id(0)
    run = tl.program_id(1)
    tokens = run * RUN + tl.arange(0, RUN)
    x = tl.load(logits_ptr + row.to(tl.int64) * VOCAB + tokens, mask=tokens < VOCAB, other=float("-inf"))
    bad = (x != x) | (x == float("inf"))
    x = tl.where(bad, float("-inf"), x)
    best, place = tl.max(x, 0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(best_ptr + row * runs + run, best)
    tl.store(ids_ptr + row * runs + run, run * RUN + place)
    tl.store(wrong_ptr + row * runs + run, tl.sum(bad.to(tl.int32), 0))


@triton.jit
def _reaches(logits_ptr, largest, factor, bar, thresholds, BY_WEIGHT: tl.constexpr, VOCAB: tl.constexpr, CHUNK: tl.constexpr):
    """How many tokens, or how much weight, of a row have a key of at least each of 16 thresholds (int64, counted from the least key)."""
    least = (thresholds - 2147483648).to(tl.int32)
    total = tl.zeros([16], tl.float64)
    for start in range(0, VOCAB, CHUNK):
        tokens = start + tl.arange(0, CHUNK)
        x = tl.load(logits_ptr + tokens, mask=tokens < VOCAB, other=float("-inf"))
        behind = x - largest
        kept = (tokens < VOCAB) & (behind >= bar)
        reached = kept[:, None] & (_key(x)[:, None] >= least[None, :])
        if BY_WEIGHT:
            weights = tl.exp(behind * factor).to(tl.float64)
            total += tl.sum(tl.where(reached, weights[:, None], 0.0), 0)
        else:
            total += tl.sum(reached.to(tl.int32), 0).to(tl.float64)
    return total


@triton.jit
def _search(logits_ptr, largest, factor, bar, wanted, BY_WEIGHT: tl.constexpr, VOCAB: tl.constexpr, CHUNK: tl.constexpr):
    """The largest key (int64, counted from the least) that at least ``wanted`` tokens, or so much weight, reach; 0 if all are fewer."""
    steps = tl.arange(0, 16).to(tl.int64)
    found = tl.cast(0, tl.int64)
    for turn in range(8):
        thresholds = found + (steps << (28 - 4 * turn))
        reached = _reaches(logits_ptr, largest, factor, bar, thresholds, BY_WEIGHT, VOCAB, CHUNK) >= wanted
        found = tl.maximum(found, tl.max(tl.where(reached, thresholds, 0), 0))
    return found


@triton.jit
def _around(logits_ptr, largest, factor, bar, cut, VOCAB: tl.constexpr, CHUNK: tl.constexpr):
    """Of a row: the weight above a cut, the weight at it, and how many tokens are at it."""
    steps = tl.arange(0, 16)
    bounds = cut + tl.where(steps == 0, 1, 0).to(tl.int64)
    weights = _reaches(logits_ptr, largest, factor, bar, bounds, True, VOCAB, CHUNK)
    counts = _reaches(logits_ptr, largest, factor, bar, bounds, False, VOCAB, CHUNK)
    above = tl.sum(tl.where(steps == 0, weights, 0.0), 0)
    level = tl.sum(tl.where(steps == 1, weights, 0.0), 0) - above
    number = tl.sum(tl.where(steps == 1, counts, 0.0), 0) - tl.sum(tl.where(steps == 0, counts, 0.0), 0)
    return above, level, number


@triton.jit(do_not_specialize=["runs"])
def _cut_kernel(
    logits_ptr,
    best_ptr,
    filtered_ptr,
    factors_ptr,
    bars_ptr,
    top_ks_ptr,
    top_ps_ptr,
    cuts_ptr,
    lasts_ptr,
    runs,
    VOCAB: tl.constexpr,
    CHUNK: tl.constexpr,
    RUNS: tl.constexpr,
):
    row = tl.load(filtered_ptr + tl.program_id(0))
    places = tl.arange(0, RUNS)
    largest = tl.max(tl.load(best_ptr + row * runs + places, mask=places < runs, other=float("-inf")), 0)
    factor = tl.load(factors_ptr + row)
    bar = tl.load(bars_ptr + row)
    top_k = tl.load(top_ks_ptr + row)
    top_p = tl.load(top_ps_ptr + row)
    row_ptr = logits_ptr + row.to(tl.int64) * VOCAB
    if largest > float("-inf"):
        steps = tl.arange(0, 16)
        cut = tl.cast(0, tl.int64)
        ties = tl.cast(2147483647, tl.int32)  # of the tokens at the cut, how many are kept
        if top_k > 0:
            cut = _search(row_ptr, largest, factor, bar, top_k.to(tl.float64), False, VOCAB, CHUNK)
            above = tl.max(_reaches(row_ptr, largest, factor, bar, cut + 1 + (steps * 0).to(tl.int64), False, VOCAB, CHUNK), 0)
            ties = top_k - above.to(tl.int32)
        if top_p < 1.0:
            above, level, number = _around(row_ptr, largest, factor, bar, cut, VOCAB, CHUNK)
            total = above + level * tl.minimum(ties.to(tl.float64), number) / tl.maximum(number, 1.0)
            wanted = top_p.to(tl.float64) * total
            if above >= wanted:
                cut = _search(row_ptr, largest, factor, bar, wanted, True, VOCAB, CHUNK)
                ties = tl.cast(2147483647, tl.int32)
            above, level, number = _around(row_ptr, largest, factor, bar, cut, VOCAB, CHUNK)
            each = level / tl.maximum(number, 1.0)
            if (each > 0.0) & (cut > 0):
                needed = tl.maximum(tl.ceil((wanted - above) / each), 1.0)
                ties = tl.minimum(ties.to(tl.float64), needed).to(tl.int32)
        key = (cut - 2147483648).to(tl.int32)
        tl.store(cuts_ptr + row, key)
        if cut > 0:
            # The id of the last tie that is kept.
            last = tl.cast(-1, tl.int32)
            seen = tl.cast(0, tl.int32)
            for start in range(0, VOCAB, CHUNK):
                tokens = start + tl.arange(0, CHUNK)
                x = tl.load(row_ptr + tokens, mask=tokens < VOCAB, other=float("-inf"))
                tie = ((tokens < VOCAB) & (_key(x) == key)).to(tl.int32)
                ranks = seen + tl.cumsum(tie, 0)
                last = tl.maximum(last, tl.max(tl.where((tie > 0) & (ranks <= ties), tokens, -1), 0))
                seen += tl.sum(tie, 0)
            tl.store(lasts_ptr + row, last)


@triton.jit
def _quarter(x_ptr, tokens, word, largest, factor, bar, cut, last, VOCAB: tl.constexpr):
    """Noisy scores of a quarter of a run; -inf for tokens that are not kept."""
    x = tl.load(x_ptr + tokens, mask=tokens < VOCAB, other=float("-inf"))
    behind = x - largest
    key = _key(x)
    kept = (tokens < VOCAB) & (behind >= bar) & ((key > cut) | ((key == cut) & (tokens <= last)))
    uniform = ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    return tl.where(kept, behind * factor - tl.log(-tl.log(uniform)), float("-inf"))


@triton.jit(do_not_specialize=["runs"])
def _draw_kernel(
    logits_ptr,
    best_ptr,
    factors_ptr,
    bars_ptr,
    seeds_ptr,
    positions_ptr,
    cuts_ptr,
    lasts_ptr,
    scores_ptr,
    drawn_ptr,
    runs,
    VOCAB: tl.constexpr,
    QUARTER: tl.constexpr,
    RUNS: tl.constexpr,
):
    row = tl.program_id(0)
    run = tl.program_id(1)
    factor = tl.load(factors_ptr + row)
    if factor == 0.0:
        return
    places = tl.arange(0, RUNS)
    largest = tl.max(tl.load(best_ptr + row * runs + places, mask=places < runs, other=float("-inf")), 0)
    largest = tl.where(largest == float("-inf"), 0.0, largest)
    bar = tl.load(bars_ptr + row)
    cut = tl.load(cuts_ptr + row)
    last = tl.load(lasts_ptr + row)
    seed = tl.load(seeds_ptr + row).to(tl.uint64, bitcast=True)
    position = tl.load(positions_ptr + row)
    lanes = tl.arange(0, QUARTER)
    zeros = tl.zeros([QUARTER], tl.uint32)
    low = zeros + (position & 0xFFFFFFFF).to(tl.uint32)
    high = zeros + (position >> 32).to(tl.uint32)
    words = tl.philox(seed, (run * QUARTER + lanes).to(tl.uint32), low, high, zeros)
    row_ptr = logits_ptr + row.to(tl.int64) * VOCAB
    best = float("-inf")
    token = run * 4 * QUARTER
    for quarter in tl.static_range(4):
        tokens = (run * 4 + quarter) * QUARTER + lanes
        scores = _quarter(row_ptr, tokens, words[quarter], largest, factor, bar, cut, last, VOCAB)
        score, place = tl.max(scores, 0, return_indices=True, return_indices_tie_break_left=True)
        token = tl.where(score > best, (run * 4 + quarter) * QUARTER + place, token)
        best = tl.maximum(best, score)
    tl.store(scores_ptr + row * runs + run, best)
    tl.store(drawn_ptr + row * runs + run, token)


@triton.jit(do_not_specialize=["runs"])
def _choose_kernel(
    best_ptr, ids_ptr, wrong_ptr, scores_ptr, drawn_ptr, factors_ptr, tokens_ptr, runs, RUNS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0)
    places = tl.arange(0, RUNS)
    mask = places < runs
    offset = row * runs + places
    largest = tl.max(tl.load(best_ptr + offset, mask=mask, other=float("-inf")), 0)
    wrong = tl.sum(tl.load(wrong_ptr + offset, mask=mask, other=0), 0)
    if tl.load(factors_ptr + row) == 0.0:
        scores = tl.load(best_ptr + offset, mask=mask, other=float("-inf"))
        ids = tl.load(ids_ptr + offset, mask=mask, other=0)
    else:
        scores = tl.load(scores_ptr + offset, mask=mask, other=float("-inf"))
        ids = tl.load(drawn_ptr + offset, mask=mask, other=0)
    best = tl.max(scores, 0)
    token = tl.min(tl.where(mask & (scores == best), ids, 2147483647), 0)
    valid = (wrong == 0) & (largest > float("-inf"))
    tl.store(tokens_ptr + row, tl.where(valid, token, -1).to(tl.int64))


def variants() -> Iterator[Variant]:
    """The forms of Llama 3's vocabulary."""
    vocab_size = 128256
    runs = triton.cdiv(vocab_size, RUN)
    padded = triton.next_power_of_2(runs)
    floats = dict.fromkeys(("logits_ptr", "best_ptr", "scores_ptr", "factors_ptr", "bars_ptr", "top_ps_ptr"), "*fp32")
    ints = dict.fromkeys(("ids_ptr", "wrong_ptr", "drawn_ptr", "filtered_ptr", "top_ks_ptr", "cuts_ptr", "lasts_ptr"), "*i32")
    types = floats | ints | {"runs": "i32", "seeds_ptr": "*i64", "positions_ptr": "*i64", "tokens_ptr": "*i64"}
    for name, kernel, constants, warps in (
        ("look", _look_kernel, {"VOCAB": vocab_size, "RUN": RUN}, 4),
        ("cut", _cut_kernel, {"VOCAB": vocab_size, "CHUNK": _CHUNK, "RUNS": padded}, 16),
        ("draw", _draw_kernel, {"VOCAB": vocab_size, "QUARTER": QUARTER, "RUNS": padded}, 4),
        ("choose", _choose_kernel, {"RUNS": padded}, 1),
    ):
        signature = {name: kind for name, kind in types.items() if name in kernel.arg_names}
        yield Variant(f"sample_{name}", kernel, signature, constants, warps, aligned=("logits_ptr",) if "logits_ptr" in signature else ())
