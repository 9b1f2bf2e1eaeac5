"""One token for each row of a step's logits, each by its own request's parameters.

The order of the steps is vLLM's: form, allowed ids, bad words, min_tokens, logit_bias, penalties; then the most likely token where the
request is greedy, else temperature, min_p, top_k, top_p and a draw. Log probabilities are those before all of this.
A row pays only for what its request asks; a batch of plain greedy requests is one argmax. Where such a request has a form, the most
likely token of all is asked about first: if it may come next, it is the most likely one of those that may. A form that stands alone is
asked about a few draws from all tokens first: the first that may come next is as good as a draw from those that may.

A row's token depends on its logits, its request and the sequence's history alone: not on its place or on the other rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from octavo.batch import TokenLogprobs
from octavo.errors import FormFailedError
from octavo.sampling.constraints import apply_constraints, apply_forms
from octavo.sampling.filters import Draw, Trial, draw_allowed, draw_tokens
from octavo.sampling.grammar import fill_masks
from octavo.sampling.logprobs import token_logprobs
from octavo.sampling.penalties import apply_penalties
from octavo.sampling.rows import argmax
from octavo.sampling.state import SequenceState
from octavo.sampling.token_mask import Mask

TRIES = 4
"""Draws from all tokens that are put to a form before its mask is asked for: each costs some ten microseconds, a mask up to 300."""


class Sampler:
    """Samples; keeps nothing between calls."""

    def __call__(self, logits: torch.Tensor, states: Sequence[SequenceState]) -> list[tuple[int, TokenLogprobs | None]]:
        """Sample one token a row. The sequences are not changed; their owner appends the tokens.

        Args:
            logits: float32 [R, V], contiguous; overwritten where a request has constraints or penalties.
            states: the R rows' sequences.

        Returns:
            For each row the token id, and its log probabilities where the request asks for them.

        Raises:
            InvalidLogitsError: a row holds NaN or +inf, or nothing but -inf. No row is sampled then.
            FormFailedError: nothing can go on with a row's form. No row is sampled then.
        """
        if logits.shape[0] != len(states) or logits.dtype is not torch.float32 or not logits.is_contiguous():
            raise ValueError(f"need contiguous float32 logits with {len(states)} rows; got {logits.dtype} {tuple(logits.shape)}.")
        if not states:
            return []
        plain = [row for row, state in enumerate(states) if state.plain]
        likeliest = zip(plain, argmax(logits, plain), strict=True) if plain else ()
        found: dict[int, tuple[int, TokenLogprobs | None]] = {}
        for row, token in likeliest:
            grammar = states[row].grammar
            if grammar is None or grammar.allows(token):
                found[row] = token, None
        rest = {row: state for row, state in enumerate(states) if row not in found}
        if rest:
            tokens = _try(logits, rest)
            left = {row: state for row, state in rest.items() if row not in tokens}
            originals = _edit(logits, left)
            tokens |= _choose(logits, left)
            logprobs = _logprobs(logits, rest, tokens, originals)
            found.update((row, (token, logprobs.get(row))) for row, token in tokens.items())
        return [found[row] for row in range(len(states))]


def _try(logits: torch.Tensor, states: dict[int, SequenceState]) -> dict[int, int]:
    """Tokens of rows whose form allows one of the first draws from all tokens."""
    trials = [
        Trial(row, state.uniform, state.params.temperature, state.grammar.allows)
        for row, state in states.items()
        if state.tried and state.grammar is not None
    ]
    drawn = draw_allowed(logits, trials, TRIES) if trials else []
    return {trial.row: token for trial, token in zip(trials, drawn, strict=True) if token is not None}


def _edit(logits: torch.Tensor, states: dict[int, SequenceState]) -> dict[int, torch.Tensor]:
    """Apply forms, constraints and penalties in place to the rows of ``states``.

    Returns:
        Copies [V] of the rows as they were, where their requests ask for log probabilities.
    """
    formed = _masks(states)
    constrained = [
        (row, state.constraints, state.output_ids) for row, state in states.items() if state.constraints is not None and row not in formed
    ]
    penalised = [(row, state.params, state.counts) for row, state in states.items() if state.counts is not None]
    edited = {entry[0] for entry in constrained} | {entry[0] for entry in penalised} | set(formed)
    originals = {row: logits[row].clone() for row in edited if states[row].params.logprobs is not None}
    if constrained:
        apply_constraints(logits, constrained)
    apply_forms(logits, [(row, form, states[row].constraints, states[row].output_ids) for row, form in formed.items()])
    if penalised:
        apply_penalties(logits, penalised)
    return originals


def _masks(states: dict[int, SequenceState]) -> dict[int, Mask]:
    """What the forms of rows allow, for those that do not allow everything."""
    formed = {row: state.grammar for row, state in states.items() if state.grammar is not None}
    fill_masks(list(formed.values()))
    reasons = {row: error for row, grammar in formed.items() if (error := grammar.error()) is not None}
    if reasons:
        raise FormFailedError(reasons)
    return {row: mask for row, grammar in formed.items() if (mask := grammar.mask()) is not None}


def _choose(logits: torch.Tensor, states: dict[int, SequenceState]) -> dict[int, int]:
    """The token of each row of ``states``, of the edited logits."""
    greedy = [row for row, state in states.items() if state.greedy]
    tokens = dict(zip(greedy, argmax(logits, greedy), strict=True)) if greedy else {}
    draws = []
    for row, state in states.items():
        if not state.greedy:
            params = state.params
            top_k = params.top_k if 0 < params.top_k < logits.shape[1] else 0
            number = state.uniform(TRIES if state.tried else 0)  # those before have been tried
            draws.append(Draw(row, number, params.temperature, top_k, params.top_p, params.min_p))
    tokens.update(zip((draw.row for draw in draws), draw_tokens(logits, draws), strict=True))
    return tokens


def _logprobs(
    logits: torch.Tensor, states: dict[int, SequenceState], tokens: dict[int, int], originals: dict[int, torch.Tensor]
) -> dict[int, TokenLogprobs]:
    """Log probabilities by row, for the rows of ``states`` whose requests ask for them."""
    by_count: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for row, state in states.items():
        if state.params.logprobs is not None:
            by_count[state.params.logprobs].append((row, tokens[row]))
    found: dict[int, TokenLogprobs] = {}
    for count, chosen in by_count.items():
        found.update(zip((row for row, _ in chosen), token_logprobs(logits, chosen, count, originals), strict=True))
    return found
