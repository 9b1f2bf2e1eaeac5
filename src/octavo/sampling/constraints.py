"""What a request forbids or favours: logit_bias, allowed_token_ids, bad_words and min_tokens.

A forbidden token's logit becomes -inf. Rules:

- ``bad_words``: the last token of a word is banned where the output ends with the word's other tokens. The prompt does not
  count, as in vLLM.
- ``min_tokens``: while the output is shorter, the ids that would end the sequence are banned.
- Where the two bans would leave a request no id at all, neither applies at that position: ``allowed_token_ids`` always holds.
- The form of ``structured_outputs`` comes before all of these: one that would leave none of the tokens the form allows does not
  apply at that position, ``allowed_token_ids`` first, then the bans.
- Ids of V or more have no logit; nothing has to be done for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from octavo.batch import NewSequence
from octavo.errors import InvalidRequestError
from octavo.sampling.token_mask import Mask, apply_masks, within, without

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Constraints:
    """A request's constraints in the form they are applied in.

    Attributes:
        bias: token id -> value added to its logit.
        allowed: int64, the allowed ids, without repetition; None allows all.
        allowed_set: the same ids; empty where all are allowed.
        num_allowed: how many ids are allowed.
        words: (all tokens but the last, last token) of each bad word.
        longest_prefix: tokens of the longest bad word but its last.
        endings: ids banned while the output is shorter than ``min_tokens``.
    """

    bias: dict[int, float]
    allowed: torch.Tensor | None
    allowed_set: frozenset[int]
    num_allowed: int
    words: tuple[tuple[list[int], int], ...]
    longest_prefix: int
    endings: frozenset[int]
    min_tokens: int

    @classmethod
    def of(cls, new: NewSequence, vocab_size: int) -> Constraints | None:
        """The constraints of a sequence, or None where there are none.

        Raises:
            InvalidRequestError: ``allowed_token_ids`` has no id below ``vocab_size``.
        """
        params = new.params
        bias = {token: value for token, value in params.logit_bias.items() if 0 <= token < vocab_size and value != 0.0}
        words = tuple((word[:-1], word[-1]) for word in new.bad_word_ids if word and 0 <= word[-1] < vocab_size)
        endings = frozenset(token for token in new.suppress_until_min if 0 <= token < vocab_size) if params.min_tokens else frozenset()
        allowed = params.allowed_token_ids
        if not bias and allowed is None and not words and not endings:
            return None
        allowed_set = frozenset(token for token in allowed or () if 0 <= token < vocab_size)
        if allowed is not None and not allowed_set:
            raise InvalidRequestError(f"allowed_token_ids holds no id below the vocabulary size {vocab_size}.", "allowed_token_ids")
        return cls(
            bias=bias,
            allowed=None if allowed is None else torch.tensor(sorted(allowed_set)),
            allowed_set=allowed_set,
            num_allowed=vocab_size if allowed is None else len(allowed_set),
            words=words,
            longest_prefix=max((len(prefix) for prefix, _ in words), default=0),
            endings=endings,
            min_tokens=params.min_tokens,
        )

    def banned(self, output: IntArray) -> set[int]:
        """Ids that may not follow the output tokens so far, apart from those that are never allowed."""
        banned = self._bans(output)
        left = self.num_allowed > len(banned) or (self.allowed is not None and not self.allowed_set <= banned)
        return banned if left else set()

    def within(self, form: Mask, output: IntArray) -> Mask:
        """What may follow, of what the form allows."""
        if self.allowed is not None:
            form = within(form, self.allowed.tolist())
        banned = self._bans(output)
        return without(form, banned) if banned else form

    def _bans(self, output: IntArray) -> set[int]:
        banned = set(self.endings) if len(output) < self.min_tokens else set()
        if self.words:
            tail = output[max(0, len(output) - self.longest_prefix) :].tolist()
            banned.update(last for prefix, last in self.words if not prefix or tail[-len(prefix) :] == prefix)
        return banned


def apply_constraints(logits: torch.Tensor, entries: Sequence[tuple[int, Constraints, IntArray]]) -> None:
    """Bias and forbid in place.

    Args:
        logits: float32 [R, V], contiguous.
        entries: (row, constraints, the output token ids so far), at most one a row.
    """
    width = logits.shape[1]
    biased: list[int] = []
    values: list[float] = []
    banned: list[int] = []
    for row, constraints, output in entries:
        if constraints.bias:
            biased.extend(token + row * width for token in constraints.bias)
            values.extend(constraints.bias.values())
        if constraints.allowed is not None:
            allowed = constraints.allowed.to(logits.device)
            kept = logits[row, allowed]
            logits[row].fill_(float("-inf"))
            logits[row, allowed] = kept
        banned.extend(token + row * width for token in constraints.banned(output))
    flat = logits.view(-1)
    if biased:
        flat.index_add_(0, torch.tensor(biased, device=logits.device), torch.tensor(values, device=logits.device))
    if banned:
        flat.index_fill_(0, torch.tensor(banned, device=logits.device), float("-inf"))


def apply_forms(logits: torch.Tensor, entries: Sequence[tuple[int, Mask, Constraints | None, IntArray]]) -> None:
    """Bias and forbid in place where outputs are held to forms.

    Args:
        logits: float32 [R, V], contiguous.
        entries: (row, the tokens that its form allows, the request's own constraints, the output token ids so far), one a row.
    """
    masks = []
    for row, form, constraints, output in entries:
        if constraints is not None:
            form = constraints.within(form, output)
            for token, bias in constraints.bias.items():
                logits[row, token] += bias
        masks.append((row, form))
    apply_masks(logits, masks)
