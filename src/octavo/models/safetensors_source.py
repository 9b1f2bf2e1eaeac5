"""Weights in safetensors files, mapped into memory.

The format (github.com/huggingface/safetensors): eight bytes with the header's length, a JSON header that gives each tensor's type,
shape and byte range, then the bytes. The header is checked in full before any of it is used.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.models.fields import read_json_object
from octavo.models.stored_rows import StoredRows
from octavo.quantization.base import StoredTensor, WeightSource
from octavo.quantization.gguf import BLOCKS
from octavo.quantization.mapped_file import let_go

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
# A multimodal checkpoint keeps the decoder under a prefix, an older or a newer one; the names that remain are Hugging Face's own.
_TEXT_PREFIXES = {"language_model.model.": "model.", "model.language_model.": "model.", "language_model.lm_head.": "lm_head."}


@dataclass(frozen=True, slots=True)
class _Entry:
    """One tensor of a header, its bytes counted from the start of the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsSource(WeightSource):
    """The tensors of a checkpoint directory with one safetensors file or several.

    Args:
        directory: holds ``model.safetensors``, or ``model.safetensors.index.json`` and the files that names.

    Raises:
        ModelLoadError: a file is missing, cut short or lies about its contents.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, _SafetensorsFile] = {}
        self._homes: dict[str, tuple[str, str]] = {}
        if (directory / INDEX_FILE).exists():
            self._open_shards()
        elif (directory / SINGLE_FILE).exists():
            self._open_file(SINGLE_FILE)
            for name in self._files[SINGLE_FILE].entries:
                self._homes[_text_name(name)] = (SINGLE_FILE, name)
        else:
            raise ModelLoadError(
                f"{directory}: holds no weights: neither {SINGLE_FILE} nor {INDEX_FILE} is there. "
                "Pickled weights (.bin, .pt) are never read, since they can run code."
            )

    def __contains__(self, name: str) -> bool:
        return name in self._homes

    def __getitem__(self, name: str) -> StoredTensor:
        if name not in self._homes:
            raise ModelLoadError(f"{self._directory}: the checkpoint has no tensor {name!r}.")
        file, stored_name = self._homes[name]
        return self._files[file].tensor(name, stored_name)

    def names(self) -> list[str]:
        return list(self._homes)

    def let_go(self) -> None:
        for file in self._files.values():
            file.let_go()

    def _open_file(self, name: str) -> None:
        self._files[name] = _SafetensorsFile(self._directory / name)

    def _open_shards(self) -> None:
        index = self._directory / INDEX_FILE
        weight_map = read_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise ModelLoadError(f"{index}: field 'weight_map' must map tensor names to file names.")
        for file in sorted(set(weight_map.values())):
            if PurePosixPath(file).name != file or file in ("", "..") or "\\" in file:
                raise ModelLoadError(f"{index}: shard {file!r:.200} is not a plain file name.")
            if not (self._directory / file).is_file():
                raise ModelLoadError(f"{self._directory / file}: this shard, named in {INDEX_FILE}, is missing.")
            self._open_file(file)
        for name, file in weight_map.items():
            if name not in self._files[file].entries:
                raise ModelLoadError(f"{self._directory / file}: has no tensor {name!r}, although {INDEX_FILE} places it there.")
            self._homes[_text_name(name)] = (file, name)


def _text_name(name: str) -> str:
    for prefix, replacement in _TEXT_PREFIXES.items():
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name


class _SafetensorsFile:
    """One mapped file.

    Attributes:
        entries: its tensors by name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < 8:
                    raise self._unsound("it is too short to hold a header")
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ModelLoadError(f"{path}: cannot be read: {error.strerror or error}.") from error
        length = int.from_bytes(mapped[:8], "little")
        if length > min(len(mapped) - 8, MAX_HEADER_BYTES):
            raise self._unsound(f"its header claims {length} bytes, the file has {len(mapped)} (lying header, or the file is cut short)")
        self._mapped = mapped
        self._data: npt.NDArray[np.uint8] = np.frombuffer(mapped, dtype=np.uint8)[8 + length :]
        self.entries = dict(self._read_entries(mapped[8 : 8 + length]))
        self._check_ranges()

    def tensor(self, name: str, stored_name: str) -> StoredRows:
        """One tensor under its Hugging Face name.

        Raises:
            UnsupportedModelError: its type is none that Octavo computes with.
        """
        entry = self.entries[stored_name]
        if entry.dtype not in BLOCKS:
            raise UnsupportedModelError(f"{self._path}: tensor {stored_name!r} has type {entry.dtype}; F32, F16 and BF16 are read.")
        return StoredRows(name, entry.shape, entry.dtype, self._data[entry.start : entry.end], let_go=self.let_go)

    def let_go(self) -> None:
        let_go(self._mapped)

    def _unsound(self, what: str) -> ModelLoadError:
        return ModelLoadError(f"{self._path}: not a sound safetensors file: {what}.")

    def _read_entries(self, raw: bytes) -> Iterator[tuple[str, _Entry]]:
        try:
            header = json.loads(raw, object_pairs_hook=self._without_repeats)
        except (ValueError, RecursionError) as error:
            raise self._unsound(f"its header is not JSON ({error!s:.200})") from error
        if not isinstance(header, dict):
            raise self._unsound("its header is not a JSON object")
        for name, described in header.items():
            if name != "__metadata__":
                yield name, self._entry(name, described)

    def _without_repeats(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        named = dict(pairs)
        if len(named) != len(pairs):
            raise self._unsound("its header names something twice")
        return named

    def _entry(self, name: str, described: Any) -> _Entry:
        if not isinstance(described, dict):
            raise self._unsound(f"tensor {name!r} is not described by an object")
        dtype, shape, offsets = described.get("dtype"), described.get("shape"), described.get("data_offsets")
        if not isinstance(dtype, str) or dtype not in _ITEM_SIZES:
            raise self._unsound(f"tensor {name!r} has the unknown type {dtype!r:.50}")
        if not _whole_numbers(shape) or len(shape) > 8:
            raise self._unsound(f"tensor {name!r} has the impossible shape {shape!r:.100}")
        if not _whole_numbers(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= len(self._data):
            raise self._unsound(f"tensor {name!r} has bytes {offsets!r:.100} of {len(self._data)} (lying header, or the file is cut short)")
        if math.prod(shape) * _ITEM_SIZES[dtype] != offsets[1] - offsets[0]:
            raise self._unsound(f"tensor {name!r} of type {dtype} and shape {shape!r:.100} does not fill bytes {offsets}")
        return _Entry(dtype, tuple(shape), offsets[0], offsets[1])

    def _check_ranges(self) -> None:
        ordered = sorted(self.entries.items(), key=lambda item: (item[1].start, item[1].end))
        for (name, before), (other, after) in pairwise(ordered):
            if before.end > after.start:
                raise self._unsound(f"tensors {name!r} and {other!r} overlap")


def _whole_numbers(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)
