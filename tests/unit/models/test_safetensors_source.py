"""Safetensors files that lie, are cut short or point elsewhere: each raises ModelLoadError, none does more."""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.models import safetensors_source, stored_rows
from octavo.models.safetensors_source import SafetensorsSource


def build(directory: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return directory


def entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "what"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        ({"t": 3}, "not described"),
        ({"t": entry(dtype="F31")}, "unknown type"),
        ({"t": entry(dtype=["F32"])}, "unknown type"),
        ({"t": entry(shape=[-1, 4])}, "impossible shape"),
        ({"t": entry(shape=[2.0, 2])}, "impossible shape"),
        ({"t": entry(shape=4)}, "impossible shape"),
        ({"t": entry(shape=[1] * 9)}, "impossible shape"),
        ({"t": entry(shape=[2**62, 2**62])}, "does not fill"),
        ({"t": entry(shape=[2, 3])}, "does not fill"),
        ({"t": entry(offsets=[0, 20])}, "has bytes"),
        ({"t": entry(offsets=[16, 0])}, "has bytes"),
        ({"t": entry(offsets=[-16, 0])}, "has bytes"),
        ({"t": entry(offsets=[0])}, "has bytes"),
        ({"t": entry(offsets=None)}, "has bytes"),
        ({"t": entry(), "u": entry(shape=[2], offsets=[8, 16])}, "overlap"),
        (
            b'{"t": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "t": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}',
            "twice",
        ),
    ],
)
def test_lying_headers_are_refused_naming_the_file(tmp_path: Path, header: Any, what: str) -> None:
    with pytest.raises(ModelLoadError, match=rf"model\.safetensors.*{what}"):
        SafetensorsSource(build(tmp_path, header, bytes(16)))


@pytest.mark.parametrize("length", [17, 2**31, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(ModelLoadError, match="its header claims"):
        SafetensorsSource(build(tmp_path, b"{}", bytes(8), length))


@pytest.mark.parametrize("content", [b"", b"1234567"])
def test_a_file_too_short_for_a_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelLoadError, match="too short"):
        SafetensorsSource(tmp_path)


def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4, 4), "b": torch.ones(3)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    for size in range(len(whole)):
        (tmp_path / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(ModelLoadError):
            SafetensorsSource(tmp_path)


def test_no_changed_byte_makes_it_crash_or_allocate_much(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4, 4), "b": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    rng = random.Random(0)
    tracemalloc.start()
    for position in range(len(whole) - 70):
        for value in (0x00, 0xFF, ord("9"), ord('"'), rng.randrange(256)):
            content = bytearray(whole)
            content[position] = value
            (tmp_path / "model.safetensors").write_bytes(content)
            try:
                source = SafetensorsSource(tmp_path)
                for name in source.names():
                    source[name].dense(torch.float32)
            except ModelLoadError:
                continue
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_types_that_are_not_computed_with_are_refused_when_asked_for(tmp_path: Path) -> None:
    source = SafetensorsSource(build(tmp_path, {"t": entry("F8_E4M3", [16], [0, 16])}, bytes(16)))
    assert source.names() == ["t"]
    with pytest.raises(UnsupportedModelError, match=r"'t' has type F8_E4M3"):
        source["t"]


def test_an_empty_tensor_is_read_as_such(tmp_path: Path) -> None:
    source = SafetensorsSource(build(tmp_path, {"t": entry("F32", [0, 4], [0, 0]), "s": entry("F32", [], [0, 4])}, bytes(4)))
    assert source["t"].dense(torch.bfloat16).shape == (0, 4)
    assert source["s"].dense(torch.bfloat16).shape == ()


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "a\\b.safetensors", ""])
def test_shards_outside_the_directory_are_refused(tmp_path: Path, shard: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    (inside / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ModelLoadError, match="not a plain file name"):
        SafetensorsSource(inside)


def test_a_missing_shard_and_a_misplaced_tensor_are_named(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    with pytest.raises(ModelLoadError, match=r"two\.safetensors: this shard.*missing"):
        SafetensorsSource(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}))
    with pytest.raises(ModelLoadError, match=r"one\.safetensors: has no tensor 'b'"):
        SafetensorsSource(tmp_path)
    for content in ("[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'):
        index.write_text(content)
        with pytest.raises(ModelLoadError, match=r"index\.json"):
            SafetensorsSource(tmp_path)


def test_asking_for_rows_reads_only_their_bytes(tmp_path: Path) -> None:
    """A sparse file far larger than memory allows for: reading all of it would be noticed."""
    rows, columns = 2**21, 2**14
    nbytes = rows * columns * 2
    build(tmp_path, {"t": entry("BF16", [rows, columns], [0, nbytes])})
    with (tmp_path / "model.safetensors").open("r+b") as file:
        start = file.seek(0, 2)
        file.truncate(start + nbytes)
        file.seek(start + (rows - 1) * columns * 2)
        file.write(struct.pack("<H", 0x3F80))
    part = SafetensorsSource(tmp_path)["t"].dense(torch.bfloat16, slice(rows - 2, rows))
    assert part.shape == (2, columns)
    assert part[1, 0] == 1.0
    assert part.count_nonzero() == 1


@pytest.mark.parametrize("rows", [None, slice(3, 11), slice(1, 12, 3), slice(0, 0)])
@pytest.mark.parametrize("columns", [None, slice(2, 7)])
def test_a_tensor_read_in_pieces_is_the_whole_one_and_what_was_read_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: slice | None, columns: slice | None
) -> None:
    stored = torch.randn(13, 9).bfloat16()
    save_file({"t": stored}, tmp_path / "model.safetensors")
    source = SafetensorsSource(tmp_path)
    monkeypatch.setattr(stored_rows, "_PIECE_BYTES", 40)  # two rows
    gone = []
    monkeypatch.setattr(safetensors_source, "let_go", lambda mapped: gone.append(mapped))
    expected = stored[rows or slice(None)][:, columns or slice(None)].float()
    assert torch.equal(source["t"].dense(torch.float32, rows, columns), expected)
    assert len(gone) == -(-len(expected) // 2)


def test_letting_go_takes_a_files_pages_off_the_process(tmp_path: Path) -> None:
    stored = torch.randn(4000, 1000)
    save_file({"t": stored}, tmp_path / "model.safetensors")
    source = SafetensorsSource(tmp_path)
    view = source._files["model.safetensors"]._data
    int(view[::4096].astype("int64").sum())
    resident = {}
    for when in ("before", "after"):
        smaps = Path("/proc/self/smaps").read_text().split("model.safetensors\n")[1]
        resident[when] = int(next(line for line in smaps.splitlines() if line.startswith("Rss:")).split()[1])
        source.let_go()
    assert resident["before"] > 12_000 and resident["after"] == 0
    assert torch.equal(source["t"].dense(torch.float32), stored)
