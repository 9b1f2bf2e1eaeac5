"""SentencePiece models (``tokenizer.model``): read, and rebuilt as a ``tokenizers`` backend.

The file is a protocol buffer (sentencepiece_model.proto). Of its messages only a handful of fields matter here, so they are
read from the wire format directly: no generated code, no protobuf at run time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE, Unigram

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.frontend.tokenizer_parts import WORD_START, derive_merges, plain, special

UNIGRAM_MODEL, BPE_MODEL = 1, 2
_MODEL_NAMES = {3: "word", 4: "char"}

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of pieces; GGUF's token types have the same numbers."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(slots=True)
class SentencePieceModel:
    """What a model file says, under the names of its schema.

    Attributes:
        pieces: text, score and kind by id.
        named_tokens: ``bos_token`` and so on, those the model has.
    """

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    model_type: int = UNIGRAM_MODEL
    unk_id: int = 0
    treat_whitespace_as_suffix: bool = False
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    named_tokens: dict[str, str] = field(default_factory=dict)


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a model file.

    Raises:
        ModelLoadError: it is no SentencePiece model, or is cut short.
    """
    try:
        model = _parse_model(path.read_bytes())
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise ModelLoadError(f"{path}: not a sound SentencePiece model: {error}") from error
    if not model.pieces or not 0 <= model.unk_id < len(model.pieces):
        raise ModelLoadError(
            f"{path}: not a sound SentencePiece model: it has {len(model.pieces)} pieces, the unknown one is {model.unk_id}."
        )
    return model


def build_backend(model: SentencePieceModel, path: Path, *, legacy: bool, add_prefix_space: bool | None) -> Backend:
    """A backend that tokenises as the model does.

    Args:
        model: what the file says.
        path: for messages.
        legacy: whether the space before the first word (``add_dummy_prefix``) is also put after every special token, and before
            text that starts with a space already (as SentencePiece alone does); else only at the start (transformers' ``legacy``).
        add_prefix_space: overrules the model's ``add_dummy_prefix``.

    Raises:
        ModelLoadError: the pieces contradict each other.
        UnsupportedModelError: neither BPE nor Unigram, or spaces belong to the word before.
    """
    if model.model_type not in (UNIGRAM_MODEL, BPE_MODEL):
        raise UnsupportedModelError(
            f"{path}: a SentencePiece model of type {_MODEL_NAMES.get(model.model_type, model.model_type)}; BPE and Unigram are read."
        )
    if model.treat_whitespace_as_suffix or not model.escape_whitespaces:
        raise UnsupportedModelError(f"{path}: SentencePiece models with spaces at the end of words, or with bare spaces, are not read.")
    has_bytes = any(kind == BYTE for _, _, kind in model.pieces)
    try:
        backend = Backend(_bpe(model, has_bytes) if model.model_type == BPE_MODEL else _unigram(model, has_bytes))
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelLoadError(f"{path}: not a sound SentencePiece model: {error}") from error
    prefix = model.add_dummy_prefix if add_prefix_space is None else bool(add_prefix_space)
    set_space_rules(backend, prefix=prefix, legacy=legacy, before=_cleaning(model), has_bytes=has_bytes)
    backend.add_tokens(
        [special(text) if kind == CONTROL else plain(text) for text, _, kind in model.pieces if kind in (CONTROL, USER_DEFINED)]
    )
    return backend


def set_space_rules(backend: Backend, *, prefix: bool, legacy: bool, before: list[normalizers.Normalizer], has_bytes: bool) -> None:
    """Spell spaces as SentencePiece does, and put one before the first word.

    Args:
        backend: gets a normalizer, a pre-tokenizer and a decoder.
        prefix, legacy: see ``build_backend``.
        before: what is done to a text first.
        has_bytes: whether characters without a piece are spelled in bytes.
    """
    chain = list(before)
    if legacy or not prefix:
        chain += [*([normalizers.Prepend(WORD_START)] if prefix else []), normalizers.Replace(" ", WORD_START)]
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(WORD_START, prepend_scheme="first", split=False)
    if chain:
        backend.normalizer = normalizers.Sequence(chain)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(WORD_START, " "),
            *([decoders.ByteFallback()] if has_bytes else []),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if prefix else []),
        ]
    )


def _bpe(model: SentencePieceModel, has_bytes: bool) -> BPE:
    vocab = {text: index for index, (text, _, _) in enumerate(model.pieces)}
    mergeable = [(text, score) for text, score, kind in model.pieces if kind in (NORMAL, USER_DEFINED, UNUSED)]
    merges = derive_merges(vocab, mergeable)
    return BPE(vocab, merges, unk_token=model.pieces[model.unk_id][0], fuse_unk=True, byte_fallback=has_bytes)


def _unigram(model: SentencePieceModel, has_bytes: bool) -> Unigram:
    return Unigram([(text, score) for text, score, _ in model.pieces], unk_id=model.unk_id, byte_fallback=has_bytes)


def _cleaning(model: SentencePieceModel) -> list[normalizers.Normalizer]:
    """Unicode normalisation and the removal of superfluous spaces."""
    chain: list[normalizers.Normalizer] = []
    if model.charsmap:
        chain.append(normalizers.Precompiled(model.charsmap))
    if model.remove_extra_whitespaces:
        chain += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    return chain


# ---- the protocol buffer ---------------------------------------------------------------------------------------------


def _parse_model(data: bytes) -> SentencePieceModel:
    model = SentencePieceModel()
    names: dict[str, str] = {}
    ids: dict[str, int] = {}
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            model.pieces.append(_parse_piece(value))
        elif number == 2 and isinstance(value, bytes):
            names, ids = _parse_trainer(model, value)
        elif number == 3 and isinstance(value, bytes):
            _parse_normalizer(model, value)
    for name, token_id in ids.items():
        if 0 <= token_id < len(model.pieces):
            model.named_tokens[f"{name}_token"] = names.get(name) or model.pieces[token_id][0]
    return model


def _parse_piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif number == 2 and isinstance(value, bytes):
            score = struct.unpack("<f", value)[0]
        elif number == 3 and isinstance(value, int):
            kind = value
    return text, score, kind


def _parse_trainer(model: SentencePieceModel, data: bytes) -> tuple[dict[str, str], dict[str, int]]:
    """Fields of TrainerSpec; returns the texts and ids of its special pieces by name."""
    names: dict[str, str] = {}
    ids = {"unk": 0, "bos": 1, "eos": 2, "pad": -1}
    for number, value in _fields(data):
        if isinstance(value, int):
            if number == 3:
                model.model_type = value
            elif number == 24:
                model.treat_whitespace_as_suffix = bool(value)
            elif number in (40, 41, 42, 43):
                ids[("unk", "bos", "eos", "pad")[number - 40]] = value - 2**64 if value >= 2**63 else value
        elif number in (45, 46, 47, 48):
            names[("unk", "bos", "eos", "pad")[number - 45]] = value.decode("utf-8")
    model.unk_id = ids["unk"]
    return names, ids


def _parse_normalizer(model: SentencePieceModel, data: bytes) -> None:
    for number, value in _fields(data):
        if number == 2 and isinstance(value, bytes):
            model.charsmap = value
        elif number == 3:
            model.add_dummy_prefix = bool(value)
        elif number == 4:
            model.remove_extra_whitespaces = bool(value)
        elif number == 5:
            model.escape_whitespaces = bool(value)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message in order: number, and an integer (varints) or bytes (all else).

    Raises:
        ValueError: the bytes are no message.
    """
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire_type == _BYTES:
            length, position = _varint(data, position)
        elif wire_type in (_FIXED32, _FIXED64):
            length = 4 if wire_type == _FIXED32 else 8
        else:
            raise ValueError(f"byte {position} is no field of a message")
        if length > len(data) - position:
            raise ValueError(f"field {number} at byte {position} ends outside the data")
        yield number, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError(f"byte {position} is no varint")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
