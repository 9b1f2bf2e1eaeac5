"""Tokens in, vocabulary scores out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from octavo.layers.linear import weight_part
from octavo.ops.base import Ops, PackedLinear
from octavo.quantization.base import WeightSource

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


class Embedding:
    """The token table, and the product that scores the vocabulary.

    A tied model scores with the token table itself; whether that is held once or twice is the backend's affair. The ranks of
    ``ops.group`` each hold some rows of both.

    Args:
        tied: whether the head is the token table.
        scale: factor on embedded tokens.
        softcap: tanh cap of the scores, or None.
        looks_up, scores: which of the two this rank does; both but for a stage of a pipeline.
        shares: for each rank of the group, the token ids whose rows it holds; None where there is no group.
    """

    def __init__(
        self,
        ops: Ops,
        weights: WeightSource,
        tied: bool,
        scale: float,
        softcap: float | None,
        looks_up: bool = True,
        scores: bool = True,
        shares: Sequence[range] | None = None,
    ) -> None:
        self.ops = ops
        self.scale = scale
        self.softcap = softcap
        self._part: tuple[int, int] | None = None
        self._widths: list[int] = []
        if ops.group is not None and shares is not None:
            self._widths = [len(share) for share in shares]
            self._part = shares[ops.group.rank].start, shares[ops.group.rank].stop
        table = weight_part(ops, weights, EMBEDDING) if looks_up or tied else None
        self.head: PackedLinear | None = None
        self.table: object = None
        if scores:
            part = table if tied else weight_part(ops, weights, HEAD)
            assert part is not None
            self.head = ops.pack_linear([part])
        if looks_up and table is not None:
            stored = weights[EMBEDDING]
            if table.shape[1] == stored.shape[1]:
                self.table = ops.pack_embedding(table, self.head if tied else None)
            else:  # filled up to whole blocks: good for products, too wide for rows
                self.table = ops.pack_embedding(stored.dense(ops.dtype), None)

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """int64 [T] to [T, H]."""
        return self.ops.all_reduce(self.ops.embedding(token_ids, self.table, self.scale, self._part))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """[R, H] to float32 [R, V] on the group's first rank, None on the others."""
        assert self.head is not None, "a stage that does not score the vocabulary was asked to"
        scores = self.ops.logits(hidden, self.head, self.softcap)
        return scores if self.ops.group is None else self.ops.group.gather(scores, self._widths)
