"""GGUF files, mapped into memory: metadata, the list of tensors and their bytes. Imports no torch.

The format is llama.cpp's (github.com/ggml-org/ggml/blob/master/docs/gguf.md): a header, key-value metadata, the tensors'
descriptions, then their data, aligned. A file is a stranger's: each count, length and offset is checked against the file's
size before anything is allocated for it.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.quantization.mapped_file import let_go

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4
MAX_ARRAY_DEPTH = 4
MAX_ALIGNMENT = 2**20
MAX_KEY_BYTES = 2**16 - 1
MAX_NAME_BYTES = 255

# Storage types Octavo reads, by their number in the file: (name, values a block, bytes a block).
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
BLOCKS: dict[str, tuple[int, int]] = {name: (values, size) for name, values, size in TENSOR_TYPES.values()}
"""For each storage type, the values in a block and a block's bytes."""

# Names of the types Octavo does not read, for the message that refuses them.
_OTHER_TYPES = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip

# Metadata value types with a fixed size: their struct format and numpy type.
_SCALARS: dict[int, tuple[struct.Struct, str]] = {
    0: (struct.Struct("<B"), "<u1"),
    1: (struct.Struct("<b"), "<i1"),
    2: (struct.Struct("<H"), "<u2"),
    3: (struct.Struct("<h"), "<i2"),
    4: (struct.Struct("<I"), "<u4"),
    5: (struct.Struct("<i"), "<i4"),
    6: (struct.Struct("<f"), "<f4"),
    7: (struct.Struct("<?"), "<u1"),
    10: (struct.Struct("<Q"), "<u8"),
    11: (struct.Struct("<q"), "<i8"),
    12: (struct.Struct("<d"), "<f8"),
}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_SMALLEST_ENTRY = 8 + 4 + 1  # an empty key, its type, one byte
_SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8  # an empty name, one dimension, type, offset


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """Where one tensor lies.

    Attributes:
        name: its name in the file, such as ``blk.0.attn_q.weight``.
        shape: its logical shape, rows first (the file stores the reverse).
        format: the storage type, one of ``BLOCKS``.
        offset: the first byte, counted from the start of the file.
        nbytes: its size in bytes.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    offset: int
    nbytes: int


class GGUFFile:
    """An open GGUF file.

    Attributes:
        path: where it is.
        metadata: values by key; arrays of strings (or of arrays) are lists, arrays of numbers numpy arrays.
        tensors: by name, in the file's order.
    """

    def __init__(self, path: Path, metadata: dict[str, Any], tensors: dict[str, GGUFTensor], mapped: mmap.mmap) -> None:
        self.path = path
        self.metadata = metadata
        self.tensors = tensors
        self._mapped = mapped
        self._content: npt.NDArray[np.uint8] = np.frombuffer(mapped, dtype=np.uint8)

    def data(self, name: str) -> npt.NDArray[np.uint8]:
        """The stored bytes of a tensor: a read-only view of the mapped file, uint8 [nbytes].

        Raises:
            ModelLoadError: the file has no such tensor.
        """
        if name not in self.tensors:
            raise ModelLoadError(f"{self.path}: the file has no tensor {name!r}.")
        tensor = self.tensors[name]
        return self._content[tensor.offset : tensor.offset + tensor.nbytes]

    def let_go(self) -> None:
        """Take what was read of it off this process's memory."""
        let_go(self._mapped)


def open_gguf(path: Path) -> GGUFFile:
    """Map a GGUF file and read its header.

    Raises:
        ModelLoadError: the file cannot be read or what it says of itself is false, naming the file and what is wrong.
        UnsupportedModelError: a tensor has a storage type that Octavo does not read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size < 24:
                raise ModelLoadError(f"{path}: not a GGUF file: it is too short to hold a header.")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror or error}.") from error
    identity = (path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if identity not in _headers:
        header = _HeaderReader(path, mapped).read()
        _headers.clear()
        _headers[identity] = header
    return GGUFFile(path, *_headers[identity], mapped)


_headers: dict[tuple[object, ...], tuple[dict[str, Any], dict[str, GGUFTensor]]] = {}
"""Metadata and tensors of the file read last: a start opens its checkpoint several times, and a vocabulary takes long to read."""


class _HeaderReader:
    """Walks the header once, front to back."""

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self.path = path
        self.bytes = memoryview(mapped)
        self.size = len(mapped)
        self.position = 0

    def read(self) -> tuple[dict[str, Any], dict[str, GGUFTensor]]:
        """The file's metadata, and its tensors by name."""
        tensor_count, entry_count = self._counts()
        metadata = self._metadata(entry_count)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self._unsound(f"general.alignment must be a power of two up to {MAX_ALIGNMENT}, the file says {alignment!r}")
        described = [self._tensor() for _ in range(tensor_count)]
        data_start = -(-self.position // alignment) * alignment
        tensors: dict[str, GGUFTensor] = {}
        for name, shape, storage, offset in described:
            if name in tensors:
                raise self._unsound(f"two tensors are named {name!r}")
            tensors[name] = self._place(name, shape, storage, offset, data_start, alignment)
        self._check_overlaps(tensors)
        return metadata, tensors

    def _unsound(self, what: str) -> ModelLoadError:
        return ModelLoadError(f"{self.path}: not a sound GGUF file: {what}.")

    def _need(self, count: int, what: str) -> None:
        """Refuse to go on when fewer than ``count`` bytes are left."""
        if count > self.size - self.position:
            left = self.size - self.position
            raise self._unsound(
                f"{what} at byte {self.position} needs {count} bytes, {left} are left (lying header, or the file is cut short)"
            )

    def _u32(self, what: str) -> int:
        self._need(4, what)
        value: int = _U32.unpack_from(self.bytes, self.position)[0]
        self.position += 4
        return value

    def _u64(self, what: str) -> int:
        self._need(8, what)
        value: int = _U64.unpack_from(self.bytes, self.position)[0]
        self.position += 8
        return value

    def _string(self, what: str, limit: int | None = None) -> str:
        length = self._u64(what)
        if limit is not None and length > limit:
            raise self._unsound(f"{what} has {length} bytes, at most {limit} are possible")
        self._need(length, what)
        raw = self.bytes[self.position : self.position + length]
        self.position += length
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as error:
            raise self._unsound(f"{what} is not UTF-8 ({error.reason})") from error

    def _counts(self) -> tuple[int, int]:
        if self.bytes[:4] != MAGIC:
            raise self._unsound(f"it starts with {bytes(self.bytes[:4])!r} instead of {MAGIC!r}")
        self.position = 4
        version = self._u32("the version")
        if version & 0xFFFF == 0 and version:
            raise self._unsound("it is in big-endian order, only little-endian files are read")
        if version not in VERSIONS:
            raise self._unsound(f"its version is {version}, only {' and '.join(map(str, VERSIONS))} are read")
        tensor_count = self._u64("the number of tensors")
        entry_count = self._u64("the number of metadata entries")
        self._need(entry_count * _SMALLEST_ENTRY + tensor_count * _SMALLEST_TENSOR, f"{entry_count} entries and {tensor_count} tensors")
        return tensor_count, entry_count

    def _metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = self._string("a metadata key", MAX_KEY_BYTES)
            if key in metadata:
                raise self._unsound(f"metadata key {key!r} appears twice")
            metadata[key] = self._value(self._u32(f"the type of {key!r}"), key, 0)
        return metadata

    def _value(self, kind: int, key: str, depth: int) -> Any:
        if kind in _SCALARS:
            layout = _SCALARS[kind][0]
            self._need(layout.size, f"the value of {key!r}")
            value = layout.unpack_from(self.bytes, self.position)[0]
            self.position += layout.size
            return value
        if kind == _STRING:
            return self._string(f"the value of {key!r}")
        if kind == _ARRAY:
            return self._array(key, depth + 1)
        raise self._unsound(f"{key!r} has the unknown value type {kind}")

    def _array(self, key: str, depth: int) -> Any:
        if depth > MAX_ARRAY_DEPTH:
            raise self._unsound(f"{key!r} nests arrays more than {MAX_ARRAY_DEPTH} deep")
        kind = self._u32(f"the element type of {key!r}")
        count = self._u64(f"the length of {key!r}")
        if kind in _SCALARS:
            numbers = np.dtype(_SCALARS[kind][1])
            self._need(count * numbers.itemsize, f"array {key!r} of {count} values")
            values = np.frombuffer(self.bytes, dtype=numbers, count=count, offset=self.position).copy()
            self.position += count * numbers.itemsize
            return values.astype(np.bool_) if kind == _BOOL else values
        if kind == _STRING:
            self._need(count * 8, f"array {key!r} of {count} strings")
            return self._strings(key, count)
        if kind == _ARRAY:
            self._need(count * 12, f"array {key!r} of {count} arrays")
            return [self._array(key, depth + 1) for _ in range(count)]
        raise self._unsound(f"array {key!r} has the unknown element type {kind}")

    def _strings(self, key: str, count: int) -> list[str]:
        """As ``_string`` a ``count`` times, without its calls: a vocabulary has hundreds of thousands."""
        content, size, position, length_at = self.bytes, self.size, self.position, _U64.unpack_from
        strings: list[str] = []
        try:
            for _ in range(count):
                start = position + 8
                position = start + length_at(content, position)[0]
                if position > size:
                    raise self._unsound(f"a string of array {key!r} at byte {start} ends outside the file")
                strings.append(str(content[start:position], "utf-8"))
        except UnicodeDecodeError as error:
            raise self._unsound(f"a string of array {key!r} is not UTF-8 ({error.reason})") from error
        except struct.error:
            raise self._unsound(f"array {key!r} says it has {count} strings, but the file ends before") from None
        self.position = position
        return strings

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """One description: name, logical shape, type number, offset from the start of the data."""
        name = self._string("a tensor name", MAX_NAME_BYTES)
        dims = self._u32(f"the rank of {name!r}")
        if not 1 <= dims <= MAX_DIMS:
            raise self._unsound(f"tensor {name!r} has {dims} dimensions, 1 to {MAX_DIMS} are possible")
        shape = tuple(self._u64(f"the shape of {name!r}") for _ in range(dims))[::-1]
        if 0 in shape or math.prod(shape) >= 2**63:
            raise self._unsound(f"tensor {name!r} has the impossible shape {list(shape)}")
        return name, shape, self._u32(f"the type of {name!r}"), self._u64(f"the offset of {name!r}")

    def _place(self, name: str, shape: tuple[int, ...], storage: int, offset: int, data_start: int, alignment: int) -> GGUFTensor:
        """Check one description against the file."""
        if storage not in TENSOR_TYPES:
            label = _OTHER_TYPES.get(storage, f"number {storage}")
            readable = ", ".join(BLOCKS)
            raise UnsupportedModelError(f"{self.path}: tensor {name!r} has storage type {label}; those that are read: {readable}.")
        label, block_values, block_bytes = TENSOR_TYPES[storage]
        if shape[-1] % block_values:
            raise self._unsound(f"tensor {name!r} has rows of {shape[-1]} values, {label} stores blocks of {block_values}")
        nbytes = math.prod(shape) // block_values * block_bytes
        if offset % alignment:
            raise self._unsound(f"tensor {name!r} starts at offset {offset}, which is not a multiple of {alignment}")
        end = data_start + offset + nbytes
        if end > self.size:
            raise self._unsound(f"tensor {name!r} ends at byte {end}, the file has {self.size} (lying header, or the file is cut short)")
        return GGUFTensor(name, shape, label, data_start + offset, nbytes)

    def _check_overlaps(self, tensors: dict[str, GGUFTensor]) -> None:
        ordered = sorted(tensors.values(), key=lambda tensor: tensor.offset)
        for before, after in itertools.pairwise(ordered):
            if before.offset + before.nbytes > after.offset:
                raise self._unsound(f"tensors {before.name!r} and {after.name!r} overlap")
