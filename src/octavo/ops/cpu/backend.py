"""The CPU kernels behind the ``Ops`` interface.

Rows between operations are float32; products convert them to what their weight multiplies (``csrc/cpu/operand.h``). Every operation is
one entry of a C++ ``Program``: called on its own it is a program of one, recorded (``tape.py``) it is one of many.

A row's bits do not depend on the rows beside it, the number of threads, or on whether the pass was recorded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from octavo.ops import _cpu
from octavo.ops.base import (
    AttentionBatch,
    AttentionSpec,
    Forward,
    Group,
    HeadNorms,
    KVLayer,
    KVShape,
    Ops,
    PackedLinear,
    StepLimits,
    WeightPart,
)
from octavo.ops.cpu.kv import CpuKVLayer, cpu_kv_layers
from octavo.ops.cpu.shared_group import SharedGroup
from octavo.ops.cpu.tape import Operation, Tape, compile_tape
from octavo.ops.cpu.weights import PackedPart, pack_parts
from octavo.ops.workspace import CPU_PIECE_ROWS

_ANY_ROWS = 2**31 - 1

Arguments = dict[str, Any]
"""Of a method of ``_cpu.Program``."""


WIDE_KERNELS = "amx"
"""The set that can multiply rows of 16 bits with quantised weights."""


class CpuOps(Ops):
    """C++ kernels.

    Args:
        dtype: float32 or bfloat16: what dense weights are multiplied in.
        threads: of the team that runs everything.
        kernels: the instruction set's name (``_cpu.kernel_sets()``); empty for the best.
        activation_bits: what rows keep where they meet quantised weights: 8 (int8), or 16, which only the kernels for AMX do (bfloat16
            with 4-bit weights, which are looked up as bfloat16 too; whole numbers with int8 ones); None for the most that they do.
        group: the ranks that share each layer; a ``SharedGroup`` where all are on this host.

    Attributes:
        wide_activations: whether rows have 16 bits there.
        program: the recorded pass, once there is one: it can be profiled.
    """

    name = "cpu"
    runs_blocks = True

    def __init__(
        self, dtype: torch.dtype, threads: int, kernels: str = "", activation_bits: int | None = None, group: Group | None = None
    ) -> None:
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"the CPU kernels compute in float32 and bfloat16, not {dtype}")
        super().__init__(torch.device("cpu"), dtype, group)
        self.activation_dtype = torch.float32
        self.kernels = kernels or _cpu.kernel_sets()[0]
        self.wide_activations = self.kernels == WIDE_KERNELS and activation_bits != 8
        self.team = _cpu.Team(threads)
        self.program: _cpu.Program | None = None
        self._tape: Tape | None = None
        self._ranks = None if group is None else _ranks(group)

    # ---- weights -----------------------------------------------------------------------------------------------------

    def pack_linear(self, parts: Sequence[WeightPart], bias: torch.Tensor | None = None, gated: bool = False) -> PackedLinear:
        packed = pack_parts(parts, bias, gated, self.dtype, self.team, self.wide_activations)
        return PackedLinear(packed, parts[0].shape[1], sum(part.shape[0] for part in parts))

    def linear(self, x: torch.Tensor, weight: PackedLinear) -> torch.Tensor:
        output = self._new(len(x), weight.out_features)
        for part in _parts(weight):
            self._product(x, part, output[:, part.first : part.first + part.out_features])
        return output

    def gated_linear(self, x: torch.Tensor, weight: PackedLinear, kind: str) -> torch.Tensor:
        parts, width = _parts(weight), weight.out_features // 2
        output = self._new(len(x), width)
        if len(parts) == 1:
            self._product(x, parts[0], output, activation=kind)
            return output
        both = self.linear(x, weight)
        arguments: Arguments = _rows("input", both) | _rows("output", output)
        self._run("gated", len(x), arguments | {"activation": kind, "width": width})
        return output

    def logits(self, x: torch.Tensor, weight: PackedLinear, softcap: float | None = None) -> torch.Tensor:
        output = self._new(len(x), weight.out_features)
        for part in _parts(weight):
            self._product(x, part, output[:, part.first : part.first + part.out_features], softcap=softcap or 0.0)
        return output

    def _product(self, x: torch.Tensor, part: PackedPart, output: torch.Tensor, activation: str = "", softcap: float = 0.0) -> None:
        arguments: Arguments = {
            "norm": 0,
            "eps": 0.0,
            "plus_one": False,
            "weight": part.weight,
            "activation": activation,
            "add": False,
            "softcap": softcap,
        }
        self._run("linear", len(x), arguments | _rows("input", x) | _rows("output", output))

    def pack_embedding(self, table: WeightPart, head: PackedLinear | None) -> object:
        packed = _parts(head) if head is not None else pack_parts([table], None, False, self.dtype, self.team, self.wide_activations)
        return packed[0].weight

    def embedding(self, token_ids: torch.Tensor, table: object, scale: float = 1.0, part: tuple[int, int] | None = None) -> torch.Tensor:
        weight = cast("_cpu.PackedWeight", table)
        rounded = torch.tensor(scale, dtype=self.dtype).item()
        output = self._new(len(token_ids), weight.columns)
        arguments: Arguments = {"table": weight, "first": 0 if part is None else part[0], "scale": rounded}
        self._run("embedding", len(token_ids), arguments | _rows("output", output), token_ids=token_ids)
        return output

    # ---- between ranks and stages ------------------------------------------------------------------------------------

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        if self._ranks is None:
            return x
        output = self._new(len(x), x.shape[1])
        arguments: Arguments = {"width": x.shape[1], "add": False, "group": self._ranks}
        self._run("all_reduce", len(x), arguments | _rows("input", x) | _rows("output", output))
        return output

    def stage_input(self, rows: torch.Tensor) -> torch.Tensor:
        if self._tape is None:
            return rows
        output = self._new(len(rows), rows.shape[1])
        self._run("stage_input", len(rows), {"width": rows.shape[1]} | _rows("output", output))
        return output

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        self._run("add", len(x), {"width": x.shape[-1]} | _rows("input", x.float()) | _rows("output", residual))
        return residual

    # ---- element-wise ------------------------------------------------------------------------------------------------

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, plus_one: bool = False) -> torch.Tensor:
        width = x.shape[-1]
        rows = x if x.ndim > 2 else x.unsqueeze(1)  # [T, heads, width]
        if rows.dtype != torch.float32 or rows.ndim != 3 or rows.stride(2) != 1 or (rows.shape[1] > 1 and rows.stride(1) != width):
            rows = rows.float().contiguous().view(len(x), -1, width)
        output = self._new(len(x), rows.shape[1] * width)
        arguments: Arguments = {
            "input": rows.data_ptr(),
            "input_stride": rows.stride(0),
            "weight": weight.data_ptr(),
            "eps": eps,
            "plus_one": plus_one,
            "heads": rows.shape[1],
            "width": width,
            "add": False,
        }
        self._run("norm", len(x), arguments | _rows("output", output))
        return output.view(x.shape)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, plus_one: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.add(x, residual)
        return self.rms_norm(residual, weight, eps, plus_one), residual

    # ---- attention ---------------------------------------------------------------------------------------------------

    def rotary_and_cache(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cos_sin: torch.Tensor,
        batch: AttentionBatch,
        kv: KVLayer,
        norms: HeadNorms | None = None,
    ) -> torch.Tensor:
        q, k = self._norm_heads(q, k, norms)  # in a recorded pass they become one (``tape.py``)
        arguments: Arguments = {
            "cos_sin": cos_sin.data_ptr(),
            "rotary_dim": cos_sin.shape[1],
            "heads": q.shape[1],
            "q_norm": 0,
            "k_norm": 0,
            "eps": 0.0,
            "plus_one": False,
        }
        self._run("rotary_cache", len(q), arguments | _heads("q", q) | _heads("k", k) | _heads("v", v) | _cache(kv), batch=batch)
        return q

    def paged_attention(self, q: torch.Tensor, batch: AttentionBatch, kv: KVLayer, spec: AttentionSpec) -> torch.Tensor:
        output = self._new(len(q), spec.num_heads * spec.head_dim)
        arguments: Arguments = {
            "heads": spec.num_heads,
            "scale": spec.scale,
            "window": spec.window or 0,
            "softcap": spec.softcap or 0.0,
        }
        self._run("attention", len(q), arguments | _heads("q", q) | _rows("output", output) | _cache(kv), batch=batch)
        return output.view(len(q), spec.num_heads, spec.head_dim)

    # ---- pool --------------------------------------------------------------------------------------------------------

    def kv_layers(self, pool: torch.Tensor, shape: KVShape) -> list[KVLayer]:
        return cpu_kv_layers(pool, shape)

    def copy_blocks(self, pool: torch.Tensor, copies: list[tuple[int, int]]) -> None:
        if copies:
            source, destination = torch.tensor(copies).unbind(1)
            pool.index_copy_(0, destination, pool.index_select(0, source))

    # ---- the whole pass ----------------------------------------------------------------------------------------------

    def prepare_forward(
        self, forward: Forward, kv: list[KVLayer], limits: StepLimits, stage_width: int | None = None
    ) -> Callable[[torch.Tensor, AttentionBatch], torch.Tensor]:
        """Record the pass once; see ``Ops.prepare_forward``."""
        nothing = torch.zeros(1, dtype=torch.int64)
        step = AttentionBatch(nothing, nothing, nothing.int(), nothing.int(), nothing.int().unsqueeze(0), [1], [1], 1)
        self._tape = tape = Tape()
        try:
            result = forward(nothing if stage_width is None else torch.zeros((1, stage_width)), step, kv)
        finally:
            self._tape = None
        program, arena = compile_tape(tape, result, self.team, self.kernels, CPU_PIECE_ROWS)
        width = result.shape[1]

        def run(start: torch.Tensor, batch: AttentionBatch) -> torch.Tensor:
            hidden = torch.empty((len(start), width), dtype=torch.float32)
            assert arena.numel()  # the program's buffers: alive as long as this function
            begin = {"token_ids": start.data_ptr()} if stage_width is None else {"input": start.data_ptr(), "input_width": stage_width}
            program.run(len(start), output=hidden.data_ptr(), **begin, **_geometry(batch))
            return hidden

        self.program = program
        return run

    # ---- one operation -----------------------------------------------------------------------------------------------

    def _new(self, rows: int, width: int) -> torch.Tensor:
        return torch.empty((rows, width), dtype=torch.float32) if self._tape is None else self._tape.new(width)

    def _run(
        self, name: str, rows: int, arguments: Arguments, token_ids: torch.Tensor | None = None, batch: AttentionBatch | None = None
    ) -> None:
        """Run an operation on its own, or add it to the tape that records.

        Args:
            name: the method of ``_cpu.Program``; ``arguments`` are its.
            token_ids, batch: what it reads of the step.
        """
        if self._tape is not None:
            self._tape.operations.append(Operation(name, arguments))
            return
        program = _cpu.Program(self.team, self.kernels, _ANY_ROWS)
        getattr(program, name)(**arguments)
        step: dict[str, int] = {} if batch is None else _geometry(batch)
        program.run(rows, token_ids=0 if token_ids is None else token_ids.data_ptr(), **step)


def _ranks(group: Group) -> _cpu.SharedGroup | _cpu.ElsewhereGroup:
    """How the kernels reach the other ranks: through shared memory, or by calling back."""
    if isinstance(group, SharedGroup):
        return group.handle

    def reduce(address: int, floats: int) -> None:
        rows = torch.frombuffer((ctypes.c_float * floats).from_address(address), dtype=torch.float32)
        rows.copy_(group.all_reduce(rows))

    return _cpu.ElsewhereGroup(reduce)


def _parts(weight: PackedLinear) -> list[PackedPart]:
    return cast("list[PackedPart]", weight.data)


def _rows(name: str, x: torch.Tensor) -> Arguments:
    """The address and stride of float32 rows [T, width]."""
    if x.dtype != torch.float32 or x.ndim != 2 or (x.shape[1] > 1 and x.stride(1) != 1):
        raise ValueError(f"{name} must be float32 rows; got {x.dtype} {tuple(x.shape)} with strides {x.stride()}")
    return {name: x.data_ptr(), f"{name}_stride": x.stride(0)}


def _heads(name: str, x: torch.Tensor) -> Arguments:
    """The address and row stride of float32 heads [T, heads, head size], heads side by side."""
    if x.dtype != torch.float32 or x.ndim != 3 or x.stride(2) != 1 or (x.shape[1] > 1 and x.stride(1) != x.shape[2]):
        raise ValueError(f"{name} must be float32 heads; got {x.dtype} {tuple(x.shape)} with strides {x.stride()}")
    return {name: x.data_ptr(), f"{name}_stride": x.stride(0)}


def _cache(kv: KVLayer) -> Arguments:
    assert isinstance(kv, CpuKVLayer)
    shape = kv.shape
    return {
        "cache": kv.addresses,
        "cache_type": kv.cache_type,
        "kv_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "block_size": shape.block_size,
    }


def _geometry(batch: AttentionBatch) -> dict[str, int]:
    """A step's arrays, as ``_cpu.Program.run`` takes them."""
    return {
        "positions": batch.positions.data_ptr(),
        "slots": batch.slots.data_ptr(),
        "sequences": len(batch.query_lens),
        "query_starts": batch.query_starts.data_ptr(),
        "context_lens": batch.context_lens.data_ptr(),
        "block_tables": batch.block_tables.data_ptr(),
        "table_stride": batch.block_tables.stride(0),
        "block_size": batch.block_size,
    }
