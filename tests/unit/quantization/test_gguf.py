"""The GGUF reader: what sound files say, and that no file, however false, does more than raise ModelLoadError."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.quantization.gguf import BLOCKS, TENSOR_TYPES, open_gguf


def write_sample(path: Path) -> dict[str, np.ndarray]:
    """A small file with every kind of metadata and a few tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{kind}")(f"number.{kind}", 7)
    writer.add_float32("number.float32", 0.5)
    writer.add_float64("number.float64", 0.1)
    writer.add_bool("flag", True)
    writer.add_string("text", "octavo ✓")
    writer.add_array("strings", ["a", "", "ü"])
    writer.add_array("integers", [3, -1, 4])
    writer.add_array("floats", [0.25, 0.5])
    writer.add_array("flags", [True, False])
    writer.add_array("nested", [[1, 2], [3]])
    rng = np.random.default_rng(0)
    tensors = {"a": rng.standard_normal((4, 64)).astype(np.float32), "b": rng.standard_normal(3).astype(np.float16)}
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.add_tensor("q", gguf.quantize(tensors["a"], gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    write_sample(tmp_path / "sample.gguf")
    return tmp_path / "sample.gguf"


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def build(
    path: Path,
    entries: Sequence[bytes] = (),
    tensors: Sequence[tuple[str, list[int], int, int]] = (),
    data: bytes = b"",
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> Path:
    """A file made by hand: raw metadata entries, and (name, dims as stored, type, offset) of tensors."""
    tensor_count, entry_count = counts or (len(tensors), len(entries))
    raw = b"GGUF" + struct.pack("<IQQ", version, tensor_count, entry_count) + b"".join(entries)
    for name, dims, kind, offset in tensors:
        raw += text(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in dims) + struct.pack("<IQ", kind, offset)
    raw += bytes(-len(raw) % 32)
    path.write_bytes(raw + data)
    return path


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def test_metadata_of_every_kind_is_read(sample: Path) -> None:
    metadata = open_gguf(sample).metadata
    assert metadata["general.architecture"] == "llama"
    assert all(metadata[f"number.{sign}int{bits}"] == 7 for sign in ("", "u") for bits in (8, 16, 32, 64))
    assert (metadata["number.float32"], metadata["number.float64"], metadata["flag"]) == (0.5, 0.1, True)
    assert metadata["text"] == "octavo ✓"
    assert metadata["strings"] == ["a", "", "ü"]
    assert metadata["integers"].tolist() == [3, -1, 4]
    assert metadata["floats"].tolist() == [0.25, 0.5]
    assert metadata["flags"].tolist() == [True, False]
    assert metadata["flags"].dtype == np.bool_
    assert [part.tolist() for part in metadata["nested"]] == [[1, 2], [3]]


def test_tensors_lie_where_the_file_says_with_rows_first(tmp_path: Path) -> None:
    written = write_sample(tmp_path / "sample.gguf")
    file = open_gguf(tmp_path / "sample.gguf")
    assert {name: (t.shape, t.format) for name, t in file.tensors.items()} == {
        "a": ((4, 64), "F32"),
        "b": ((3,), "F16"),
        "q": ((4, 64), "Q8_0"),
    }
    for name, values in written.items():
        assert file.data(name).tobytes() == values.tobytes()
    assert file.data("q").size == file.tensors["q"].nbytes == 4 * 64 // 32 * 34


def test_type_numbers_and_block_sizes_are_those_of_the_gguf_package() -> None:
    for number, (name, values, nbytes) in TENSOR_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert kind.name == name
        assert gguf.GGML_QUANT_SIZES[kind] == (values, nbytes) == BLOCKS[name]


def test_the_mapped_bytes_cannot_be_written(sample: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        open_gguf(sample).data("a")[0] = 1


def test_reading_imports_no_torch() -> None:
    code = "import sys, octavo.quantization.gguf; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_a_missing_tensor_or_file_is_named(sample: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"sample\.gguf.*'nowhere'"):
        open_gguf(sample).data("nowhere")
    with pytest.raises(ModelLoadError, match=r"absent\.gguf: cannot be read"):
        open_gguf(sample.with_name("absent.gguf"))
    with pytest.raises(ModelLoadError, match="cannot be read"):
        open_gguf(sample.parent)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "too short"),
        (b"GGUF", "too short"),
        (b"GGML" + bytes(60), "starts with"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(60), "version is 1"),
        (b"GGUF" + struct.pack("<I", 99) + bytes(60), "version is 99"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(60), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0) + bytes(60), "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63) + bytes(60), "entries"),
    ],
)
def test_headers_that_are_none_are_refused(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ModelLoadError, match=what) as raised:
        open_gguf(tmp_path / "x.gguf")
    assert "x.gguf" in str(raised.value)


@pytest.mark.parametrize(
    ("entries", "what"),
    [
        ([entry("k", 8, struct.pack("<Q", 2**63))], "needs"),
        ([struct.pack("<Q", 2**40) + b"k"], "at most"),
        ([entry("k", 8, struct.pack("<Q", 2) + b"\xff\xfe")], "UTF-8"),
        ([entry("k", 9, struct.pack("<IQ", 4, 2**62))], "values"),
        ([entry("k", 9, struct.pack("<IQ", 8, 2**61))], "strings"),
        ([entry("k", 9, struct.pack("<IQ", 8, 2) + text("a") + struct.pack("<Q", 2**50))], "outside the file"),
        ([entry("k", 9, struct.pack("<IQ", 9, 2**59))], "arrays"),
        ([entry("k", 9, struct.pack("<IQ", 9, 1) * 40)], "deep"),
        ([entry("k", 9, struct.pack("<IQ", 77, 1))], "element type 77"),
        ([entry("k", 77, b"")], "value type 77"),
        ([entry("k", 0, b"1"), entry("k", 0, b"1")], "twice"),
        ([entry("general.alignment", 4, struct.pack("<I", 0))], "alignment"),
        ([entry("general.alignment", 4, struct.pack("<I", 24))], "alignment"),
        ([entry("general.alignment", 8, text("32"))], "alignment"),
    ],
)
def test_lying_metadata_is_refused(tmp_path: Path, entries: list[bytes], what: str) -> None:
    path = build(tmp_path / "x.gguf", entries, data=bytes(64))
    with pytest.raises(ModelLoadError, match=what):
        open_gguf(path)


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        ([("t", [8], 0, 4)], "not a multiple of 32"),
        ([("t", [8], 0, 2**40)], "the file has"),
        ([("t", [8], 0, 2**64 - 32)], "the file has"),
        ([("t", [100], 0, 0)], "the file has"),
        ([("t", [], 0, 0)], "0 dimensions"),
        ([("t", [1] * 5, 0, 0)], "5 dimensions"),
        ([("t", [0], 0, 0)], "impossible shape"),
        ([("t", [2**40, 2**40], 0, 0)], "impossible shape"),
        ([("t", [2**62], 0, 0)], "the file has"),
        ([("t", [33], 8, 0)], "blocks of 32"),
        ([("t", [8], 0, 0), ("t", [8], 0, 32)], "two tensors"),
        ([("t", [16], 0, 0), ("u", [8], 0, 32)], "overlap"),
        ([("t" * 300, [8], 0, 0)], "at most"),
    ],
)
def test_lying_tensor_descriptions_are_refused(tmp_path: Path, tensors: list[tuple[str, list[int], int, int]], what: str) -> None:
    path = build(tmp_path / "x.gguf", tensors=tensors, data=bytes(128))
    with pytest.raises(ModelLoadError, match=what):
        open_gguf(path)


@pytest.mark.parametrize(("kind", "label"), [(16, "IQ2_XXS"), (39, "MXFP4"), (1234, "number 1234")])
def test_an_unreadable_storage_type_is_named_with_those_that_are_read(tmp_path: Path, kind: int, label: str) -> None:
    path = build(tmp_path / "x.gguf", tensors=[("blk.0.x", [256], kind, 0)], data=bytes(4096))
    with pytest.raises(UnsupportedModelError, match=rf"'blk\.0\.x' has storage type {label}.*Q4_0.*Q6_K.*BF16"):
        open_gguf(path)


def test_a_file_cut_at_any_byte_is_refused(sample: Path, tmp_path: Path) -> None:
    whole = sample.read_bytes()
    cut = tmp_path / "cut.gguf"
    last = max(tensor.offset + tensor.nbytes for tensor in open_gguf(sample).tensors.values())
    for size in range(last):
        cut.write_bytes(whole[:size])
        with pytest.raises(ModelLoadError):
            open_gguf(cut)


def test_no_changed_byte_makes_the_reader_crash_or_allocate_much(sample: Path, tmp_path: Path) -> None:
    """Every header byte, set to the largest value and to a random one: refused, or still within the file."""
    whole = sample.read_bytes()
    header = min(tensor.offset for tensor in open_gguf(sample).tensors.values())
    rng = random.Random(0)
    changed = tmp_path / "changed.gguf"
    outcomes = {True: 0, False: 0}
    tracemalloc.start()
    for position in range(4, header):
        for value in (0xFF, rng.randrange(256)):
            content = bytearray(whole)
            content[position] = value
            changed.write_bytes(content)
            try:
                file = open_gguf(changed)
            except ModelLoadError:
                outcomes[False] += 1
                continue
            outcomes[True] += 1
            assert all(file.data(name).size == tensor.nbytes for name, tensor in file.tensors.items())
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert min(outcomes.values()) > 100
