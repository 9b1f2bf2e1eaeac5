"""What the readers of tokenizer files make, and the pieces of it they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Backend

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens with a name that every tokenizer may have; chat templates see them under it."""

WORD_START = "▁"
"""SentencePiece's spelling of a space."""


@dataclass(slots=True)
class TokenizerParts:
    """A tokenizer as read from its files.

    Attributes:
        backend: does the work.
        named_tokens: special tokens by name (``bos_token``, ...).
        special_tokens: all texts that are special tokens, beyond those the backend marks so itself.
        chat_templates: sources by name; the usual one is ``default``.
        source: the file or directory, for messages.
    """

    backend: Backend
    source: str
    named_tokens: dict[str, str] = field(default_factory=dict)
    special_tokens: set[str] = field(default_factory=set)
    chat_templates: dict[str, str] = field(default_factory=dict)


def frame(backend: Backend, bos: str | None, eos: str | None) -> None:
    """Put a begin and an end token around every text encoded with special tokens; None is none."""
    shape = [*([f"{bos}:0"] if bos else []), "$A:0", *([f"{eos}:0"] if eos else [])]
    special = [(token, backend.token_to_id(token)) for token in dict.fromkeys((bos, eos)) if token]
    backend.post_processor = processors.TemplateProcessing(single=shape, special_tokens=special)


def derive_merges(vocab: Mapping[str, int], pieces: Iterable[tuple[str, float]]) -> list[tuple[str, str]]:
    """The merges of a BPE vocabulary that comes as pieces with scores (SentencePiece), best first.

    SentencePiece joins the neighbours whose joined piece has the highest score. Each way to cut a piece in two known ones is a
    merge with that piece's score; among equals the order is that of transformers' conversion (by lengths, then by ids).

    Args:
        vocab: ids by piece.
        pieces: the pieces that merging may make, with their scores.
    """
    found: list[tuple[float, int, int, int, int, str, str]] = []
    for piece, score in pieces:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                found.append((-score, -len(left), -len(right), vocab[left], vocab[right], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def special(text: str, *, rstrip: bool = False) -> AddedToken:
    """A special token that is found in text as it stands."""
    return AddedToken(text, special=True, normalized=False, rstrip=rstrip)


def plain(text: str) -> AddedToken:
    """A token that is found whole in text, but is text like any other."""
    return AddedToken(text, special=False, normalized=False)
