"""Tokens in, vocabulary scores out."""

from __future__ import annotations

import torch

from octavo.layers.linear import weight_part
from octavo.ops.base import Ops
from octavo.quantization.base import WeightSource

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


class Embedding:
    """The token table, and the product that scores the vocabulary.

    A tied model scores with the token table itself; whether that is held once or twice is the backend's affair.

    Args:
        tied: whether the head is the token table.
        scale: factor on embedded tokens.
        softcap: tanh cap of the scores, or None.
    """

    def __init__(self, ops: Ops, weights: WeightSource, tied: bool, scale: float, softcap: float | None) -> None:
        self.ops = ops
        self.scale = scale
        self.softcap = softcap
        table = weight_part(ops, weights, EMBEDDING)
        self.head = ops.pack_linear([table if tied else weight_part(ops, weights, HEAD)])
        stored = weights[EMBEDDING]
        if table.shape[1] == stored.shape[1]:
            self.table = ops.pack_embedding(table, self.head if tied else None)
        else:  # filled up to whole blocks: good for products, too wide for rows
            self.table = ops.pack_embedding(stored.dense(ops.dtype), None)

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """int64 [T] to [T, H]."""
        return self.ops.embedding(token_ids, self.table, self.scale)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, H] to float32 [R, V]."""
        return self.ops.logits(hidden, self.head, self.softcap)
