"""A recorded forward pass: the operations a model asked for, the buffers between them, and the passes that make a program of them.

While a tape records, the backend's operations append to it instead of computing; the model runs its ordinary Python code on tensors of
one row, whose addresses say which buffer an operation means. ``compile_tape`` then

1. folds norms into the products and rotations that read them, and sums into the products they add up,
2. gives each buffer a place in one arena, shared by buffers that are not alive together, with room for ``max_rows`` rows,
3. writes the operations into a C++ ``Program``.

Folding does not change results: a folded operation does the same arithmetic in the same order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from octavo.ops import _cpu

_READS = {
    "embedding": (),
    "linear": ("input",),
    "norm": ("input",),
    "add": ("input", "output"),
    "gated": ("input",),
    "rotary_cache": ("q", "k", "v"),
    "attention": ("q",),
    "stage_input": (),
    "all_reduce": ("input",),
}
_WRITES = {"rotary_cache": ("q", "k"), "all_reduce": ("output", "input")}
"""Which arguments of an operation are addresses of rows; all others write ``output``. ``NAME_stride`` is the row's stride in floats."""

_CAN_ADD = ("linear", "all_reduce")
"""Operations that may add to what is in their output."""


@dataclass(slots=True)
class Operation:
    """One operation: a method of ``_cpu.Program`` and its arguments."""

    name: str
    arguments: dict[str, Any]

    @property
    def reads(self) -> tuple[str, ...]:
        names = _READS[self.name]
        return (*names, "output") if self.arguments.get("add") is True and "output" not in names else names

    @property
    def writes(self) -> tuple[str, ...]:
        return _WRITES.get(self.name, ("output",))


@dataclass(slots=True)
class Tape:
    """Operations in order, and every buffer they may mean.

    Attributes:
        buffers: float32 [1, width] each; kept alive, so that no two have one address.
    """

    operations: list[Operation] = field(default_factory=list)
    buffers: list[torch.Tensor] = field(default_factory=list)

    def new(self, width: int) -> torch.Tensor:
        """A new buffer of rows of ``width`` floats."""
        self.buffers.append(torch.empty((1, width), dtype=torch.float32))
        return self.buffers[-1]


class _Buffers:
    """Which buffer an address lies in."""

    def __init__(self, buffers: list[torch.Tensor]) -> None:
        ordered = sorted(buffers, key=lambda buffer: buffer.data_ptr())
        self.starts = [buffer.data_ptr() for buffer in ordered]
        self.widths = [buffer.shape[1] for buffer in ordered]

    def find(self, address: int) -> tuple[int, int]:
        """(buffer, offset in floats); buffer -1 for an address outside all of them."""
        index = bisect_right(self.starts, address) - 1
        if index < 0 or address >= self.starts[index] + 4 * self.widths[index]:
            return -1, 0
        return index, (address - self.starts[index]) // 4

    def uses(self, operation: Operation, names: tuple[str, ...]) -> Iterator[int]:
        for name in names:
            yield self.find(operation.arguments[name])[0]


def compile_tape(tape: Tape, result: torch.Tensor, team: _cpu.Team, kernels: str, max_rows: int) -> tuple[_cpu.Program, torch.Tensor]:
    """Make a program of a tape.

    Args:
        result: the tensor whose rows the program hands out: a buffer of the tape.
        max_rows: rows that buffers have room for.

    Returns:
        the program, and the arena that must live as long as it.

    Raises:
        ValueError: an operation reads or writes rows that are not the tape's.
    """
    buffers = _Buffers(tape.buffers)
    result_buffer = buffers.find(result.data_ptr())[0]
    operations = _fold_sums(_fold_norms(tape.operations, buffers, result_buffer), buffers, result_buffer)
    places, floats = _place(operations, buffers, result_buffer)
    arena = torch.empty(floats * max_rows, dtype=torch.float32)
    program = _cpu.Program(team, kernels, max_rows)
    for operation in operations:
        arguments = dict(operation.arguments)
        for name in {*operation.reads, *operation.writes}:
            buffer, offset = buffers.find(arguments[name])
            if buffer < 0:
                raise ValueError(f"{operation.name} uses rows as {name!r} that no recorded operation made")
            arguments[name] = arena.data_ptr() + 4 * (places[buffer] * max_rows + offset)
            arguments[f"{name}_stride"] = buffers.widths[buffer]
        getattr(program, operation.name)(**arguments)
    program.set_result(arena.data_ptr() + 4 * places[result_buffer] * max_rows, buffers.widths[result_buffer])
    return program, arena


def _fold_norms(operations: list[Operation], buffers: _Buffers, result: int) -> list[Operation]:
    """Let products normalise their input, and rotations their heads, where nobody else reads the norm's result."""
    gone: set[int] = set()
    uses = _Uses.of(operations, buffers, result)
    for index, operation in enumerate(operations):
        if operation.name != "norm" or operation.arguments["add"]:
            continue
        reader = _only_reader(operations, buffers, uses, index)
        if reader is not None and _fold_norm(operation, operations[reader]):
            gone.add(index)
            uses.readers[buffers.find(operation.arguments["input"])[0]].append(reader)
    return [operation for index, operation in enumerate(operations) if index not in gone]


def _fold_norm(norm: Operation, reader: Operation) -> bool:
    """Move a norm into its one reader, if that kind of reader can take it."""
    source = norm.arguments
    if reader.name == "linear" and source["heads"] == 1 and reader.arguments["input"] == source["output"]:
        if reader.arguments["weight"].columns != source["width"]:
            return False
        reader.arguments |= {"norm": source["weight"], "eps": source["eps"], "plus_one": source["plus_one"], "input": source["input"]}
        return True
    if reader.name == "rotary_cache" and reader.arguments["head_dim"] == source["width"]:
        for name in ("q", "k"):
            if reader.arguments[name] == source["output"]:
                reader.arguments |= {f"{name}_norm": source["weight"], name: source["input"]}
                reader.arguments |= {"eps": source["eps"], "plus_one": source["plus_one"]}
                return True
    return False


def _fold_sums(operations: list[Operation], buffers: _Buffers, result: int) -> list[Operation]:
    """Let a product, or the sum of all ranks' products, add to the residual stream what a sum after it would."""
    gone: set[int] = set()
    uses = _Uses.of(operations, buffers, result)
    for index, operation in enumerate(operations):
        if operation.name not in _CAN_ADD or operation.arguments["add"]:
            continue
        reader = _only_reader(operations, buffers, uses, index)
        if reader is None or operations[reader].name != "add" or operations[reader].arguments["input"] != operation.arguments["output"]:
            continue
        total = operations[reader].arguments["output"]
        between = operations[index:reader]
        if any(buffers.find(total)[0] in buffers.uses(other, (*other.reads, *other.writes)) for other in between):
            continue
        operation.arguments |= {"add": True, "output": total}
        gone.add(reader)
    return [operation for index, operation in enumerate(operations) if index not in gone]


@dataclass(slots=True)
class _Uses:
    """By buffer, the operations that read it and those that write it; whoever takes the result is reader -1."""

    readers: defaultdict[int, list[int]]
    writers: defaultdict[int, list[int]]

    @classmethod
    def of(cls, operations: list[Operation], buffers: _Buffers, result: int) -> _Uses:
        uses = cls(defaultdict(list), defaultdict(list))
        for index, operation in enumerate(operations):
            for buffer in set(buffers.uses(operation, operation.reads)):
                uses.readers[buffer].append(index)
            for buffer in set(buffers.uses(operation, operation.writes)):
                uses.writers[buffer].append(index)
        uses.readers[result].append(-1)
        return uses


def _only_reader(operations: list[Operation], buffers: _Buffers, uses: _Uses, writer: int) -> int | None:
    """The one operation that reads what ``writer`` alone wrote until then, if there is one and what ``writer`` read still stands."""
    written = buffers.find(operations[writer].arguments["output"])[0]
    found = uses.readers[written]
    if len(found) != 1 or found[0] <= writer or any(other != writer and other < found[0] for other in uses.writers[written]):
        return None
    sources = set(buffers.uses(operations[writer], operations[writer].reads))
    for other in operations[writer + 1 : found[0]]:
        if sources & set(buffers.uses(other, other.writes)):
            return None
    return found[0]


def _place(operations: list[Operation], buffers: _Buffers, result: int) -> tuple[dict[int, int], int]:
    """Places in the arena, in floats a row, so that buffers alive at once do not overlap; and the arena's floats a row.

    First fit, in order of first use.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for index, operation in enumerate(operations):
        for buffer in buffers.uses(operation, (*operation.reads, *operation.writes)):
            first.setdefault(buffer, index)
            last[buffer] = index
    last[result] = len(operations)
    places: dict[int, int] = {}
    for buffer in sorted((buffer for buffer in first if buffer >= 0), key=lambda buffer: first[buffer]):
        alive = sorted((places[other], places[other] + buffers.widths[other]) for other in places if last[other] >= first[buffer])
        place = 0
        for start, end in alive:
            if place + buffers.widths[buffer] <= start:
                break
            place = max(place, end)
        places[buffer] = place
    return places, max((places[buffer] + buffers.widths[buffer] for buffer in places), default=1)
