"""A vocabulary's bytes, as the server tells them to the engine: what a grammar needs to know of the tokens it allows."""

from __future__ import annotations

import msgspec


class Vocabulary(msgspec.Struct, tag="vocabulary", array_like=True):
    """The tokens by id.

    Attributes:
        tokens: V entries, the model's vocabulary size: the bytes a token adds to a text; empty for ids that name no token.
        special_ids: tokens that are no text (their bytes are their names), in rising order.
        eos_token_ids: tokens that end a sequence.
    """

    tokens: list[bytes]
    special_ids: list[int]
    eos_token_ids: list[int]
