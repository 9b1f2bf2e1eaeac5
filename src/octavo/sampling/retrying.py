"""Sampling that gives up single rows: one sequence's damaged scores, or failed form, must not end the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from octavo.batch import TokenLogprobs
from octavo.errors import FormFailedError, InvalidLogitsError
from octavo.log import get_logger
from octavo.sampling.sampler import Sampler
from octavo.sampling.state import SequenceState

logger = get_logger(__name__)


@dataclass(slots=True)
class Sampled:
    """What came of some rows.

    Attributes:
        tokens: sequences and their tokens with log probabilities, in the rows' order.
        failed: sequences that no token can be drawn for; reasons: what their clients are to be told, where there is something to tell.
    """

    tokens: list[tuple[SequenceState, tuple[int, TokenLogprobs | None]]] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)


def sample_what_can(logits: torch.Tensor, states: Sequence[SequenceState]) -> Sampled:
    """Sample each row that a token can be drawn from.

    Args:
        logits: float32 [R, V], contiguous; overwritten.
        states: the R rows' sequences; they are not changed.
    """
    result, sampler, live = Sampled(), Sampler(), list(states)
    # The sampler edits some rows before it may find others at fault: it is to find them as they were.
    edited = [row for row, state in enumerate(states) if _is_edited(state)]
    spare = logits[edited] if edited and len(states) > 1 else None
    place = {id(states[row]): index for index, row in enumerate(edited)}
    while live:
        try:
            result.tokens = list(zip(live, sampler(logits, live), strict=True))
            return result
        except InvalidLogitsError as error:
            logger.error("%s", error)
            at_fault = error.rows
        except FormFailedError as error:
            result.reasons |= {live[row].seq_id: reason for row, reason in error.reasons.items()}
            at_fault = list(error.reasons)
        result.failed += [live[row].seq_id for row in at_fault]
        kept = [row for row in range(len(live)) if row not in at_fault]
        logits, live = logits[kept], [live[row] for row in kept]
        for row, state in enumerate(live):
            if spare is not None and id(state) in place:
                logits[row] = spare[place[id(state)]]
    return result


def _is_edited(state: SequenceState) -> bool:
    """Whether the sampler may overwrite a sequence's scores."""
    return state.constraints is not None or state.counts is not None or state.grammar is not None
