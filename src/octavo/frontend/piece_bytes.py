"""What bytes of text a vocabulary piece stands for.

``tokenizers`` decodes a whole list of tokens at once. Text that grows token by token needs the same answer piece by piece,
so a tokenizer's decoder is read once and turned into a map from piece to bytes; the text is those bytes in a row as UTF-8.
That is possible for every decoder of the supported families, and makes decoding and streaming the same thing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tokenizers

from octavo.errors import UnsupportedModelError

PieceToBytes = Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class PieceDecoder:
    """A decoder, taken apart.

    Attributes:
        to_bytes: a piece's bytes.
        strips_space: whether one space at the very start of the whole text is dropped (SentencePiece's dummy prefix).
        separator: what stands between two tokens (a space, for tokenizers without a decoder).
    """

    to_bytes: PieceToBytes
    strips_space: bool = False
    separator: bytes = b""


def byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's spelling of bytes as printable characters, of GPT-2: character -> byte."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in visible}
    hidden = [byte for byte in range(256) if byte not in set(visible)]
    alphabet.update({chr(256 + index): byte for index, byte in enumerate(hidden)})
    return alphabet


def read_decoder(backend: tokenizers.Tokenizer) -> PieceDecoder:
    """Take a tokenizer's decoder apart.

    Raises:
        UnsupportedModelError: it is of a kind that no supported model has; the message names it.
    """
    if backend.decoder is None:
        return PieceDecoder(str.encode, separator=b" ")
    decoder = json.loads(backend.decoder.__getstate__())
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    if kinds in (["ByteLevel"], ["ByteLevel", "Fuse"]):
        return PieceDecoder(_byte_level())
    if kinds == ["Metaspace"]:
        return PieceDecoder(
            _spelled(((steps[0]["replacement"], " "),), has_bytes=False), strips_space=steps[0]["prepend_scheme"] != "never"
        )
    return _sentencepiece(steps, kinds)


def _sentencepiece(steps: list[dict[str, Any]], kinds: list[str]) -> PieceDecoder:
    """The chain ``Replace* ByteFallback? Fuse? Strip?`` that SentencePiece vocabularies are decoded with."""
    rest = list(kinds)
    while rest[:1] == ["Replace"]:
        rest.pop(0)
    replacements = steps[: len(kinds) - len(rest)]
    known = rest in ([], ["Fuse"], ["ByteFallback"], ["ByteFallback", "Fuse"], ["Fuse", "Strip"], ["ByteFallback", "Fuse", "Strip"])
    literal = all("String" in step["pattern"] for step in replacements)
    strips = "Strip" in rest
    if strips:
        strip = steps[-1]
        literal = literal and strip["content"] == " " and strip["start"] in (0, 1) and strip["stop"] == 0
        strips = strip["start"] == 1
    if not known or not literal:
        raise UnsupportedModelError(
            f"The tokenizer's decoder is {' + '.join(kinds)} with settings that are not supported; supported are ByteLevel, Metaspace, "
            "Replace (of literal text) + ByteFallback + Fuse + Strip (one leading space), and none."
        )
    pairs = tuple((step["pattern"]["String"], step["content"]) for step in replacements)
    return PieceDecoder(_spelled(pairs, has_bytes="ByteFallback" in rest), strips_space=strips)


def _byte_level() -> PieceToBytes:
    alphabet = byte_alphabet()

    def to_bytes(piece: str) -> bytes:
        try:
            return bytes([alphabet[char] for char in piece])
        except KeyError:  # an added token, spelled as itself
            return piece.encode()

    return to_bytes


def _spelled(replacements: tuple[tuple[str, str], ...], *, has_bytes: bool) -> PieceToBytes:
    def to_bytes(piece: str) -> bytes:
        for old, new in replacements:
            piece = piece.replace(old, new)
        if has_bytes and (byte := byte_of(piece)) is not None:
            return bytes([byte])
        return piece.encode()

    return to_bytes


def byte_of(piece: str) -> int | None:
    """The byte that a piece such as ``<0x0A>`` stands for; None for other pieces."""
    if len(piece) != 6 or not piece.startswith("<0x") or piece[5] != ">":
        return None
    try:
        return int(piece[3:5], 16)
    except ValueError:
        return None
