"""The forms in which a kernel is compiled: what the compiler is given for each, so that all can be compiled without a GPU.

Every kernel file has a function ``variants`` that lists its own, cut for the GPU there is or else for Hopper (``launch.capability``);
``all_variants`` is the whole. A form is compiled and its shared memory, registers and spills are read off, which is as much as can be known
of a kernel before it runs.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo.ops.cuda import FLOAT8_CAPABILITY
from octavo.ops.cuda.launch import EARLY_CAPABILITY

KERNEL_FILES: tuple[str, ...] = (
    "activation",
    "attention_decode",
    "attention_prefill",
    "block_product",
    "block_rows",
    "float8_linear",
    "norm",
    "rotary_cache",
    "sampling",
    "skinny_linear",
)
"""Modules of this package that have kernels."""

SHARED_BYTES = {(8, 0): 163 * 1024, (8, 9): 99 * 1024, (9, 0): 227 * 1024, (10, 0): 227 * 1024, (12, 0): 99 * 1024}
"""Shared memory that a program may have, by compute capability; 8.6 is as 8.9."""


@dataclass(frozen=True)
class Variant:
    """One form of a kernel.

    Attributes:
        name: of the form, unique: the kernel and what sets the form apart.
        kernel: the ``triton.jit`` function.
        signature: the type of each argument that is not a constant, by name, in Triton's words (``*bf16``, ``i32``, ``fp32``).
        constants: values of the constants, by name.
        aligned: names of pointers and integers that are multiples of 16, as a launch finds out for itself.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    aligned: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the compiler says of a form.

    Attributes:
        shared: bytes of shared memory a program has.
        registers: a thread has.
        spilled: bytes a thread keeps in memory for want of registers.
        matrix_instructions: how many tensor-core instructions the machine code has.
    """

    name: str
    shared: int
    registers: int
    spilled: int
    matrix_instructions: int = field(default=0)


def all_variants() -> Iterator[Variant]:
    """Every form of every kernel."""
    for name in KERNEL_FILES:
        yield from importlib.import_module(f"octavo.ops.cuda.{name}").variants()


def exists(variant: Variant, capability: tuple[int, int]) -> bool:
    """Whether a form can be there on GPUs of a compute capability: those of float8 numbers need them."""
    return capability >= FLOAT8_CAPABILITY or not any("fp8" in kind for kind in variant.signature.values())


def compile_variant(variant: Variant, capability: tuple[int, int]) -> Compiled:
    """Compile a form for a compute capability; needs no GPU. Must not run where ``TRITON_INTERPRET`` is set: there are no compiled kernels
    then."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names: list[str] = variant.kernel.arg_names
    signature = {name: variant.signature.get(name, "constexpr") for name in names}
    given = variant.constants | ({} if capability >= EARLY_CAPABILITY else {name: False for name in variant.constants if name == "EARLY"})
    constants = {(names.index(name),): value for name, value in given.items()}
    attrs = {(names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned}
    source = ASTSource(variant.kernel, signature, constants, attrs)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    kernel = triton.compile(source, target=GPUTarget("cuda", 10 * capability[0] + capability[1], 32), options=options)
    registers, spilled = _resources(kernel.asm["cubin"])
    instructions = len(re.findall(r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)", kernel.asm["ptx"]))
    return Compiled(variant.name, kernel.metadata.shared, registers, spilled, instructions)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a compiled kernel, from the disassembler that comes with Triton."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if usage is None:
        raise RuntimeError(f"cuobjdump does not say what the kernel uses: {text}")
    return int(usage[1]), int(usage[2])
