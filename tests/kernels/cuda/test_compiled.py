"""Every form of every kernel, compiled for Hopper and Ada, which needs no GPU: it fits the memory, spills next to nothing, uses the tensor
cores. Where tiles differ from GPU to GPU, for Ampere and Blackwell too.

The compiler runs in a process of its own for each kernel file: in this one, Triton may be told to interpret kernels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import octavo.ops.cuda
from octavo.ops.cuda.variants import KERNEL_FILES, SHARED_BYTES, all_variants

SPILLED_BYTES = 16
"""Most that a form may spill: the assembler keeps a few bytes a thread in memory where one register more is one program less on a core."""

COMPILE = '''
import dataclasses, importlib, json, re, sys
from octavo.ops.cuda import launch
from octavo.ops.cuda.variants import compile_variant, exists

def has_product(kernel, seen):
    """Whether a kernel or a function that it calls has a dot."""
    seen.add(kernel)
    called = [kernel.fn.__globals__.get(name) for name in re.findall(r"[A-Za-z_]\\w*", kernel.src)]
    return "tl.dot" in kernel.src or any(has_product(one, seen) for one in called if hasattr(one, "src") and one not in seen)

kernels, gpus, only, constants = json.loads(sys.argv[1])
for gpu in map(tuple, gpus):
    launch.capability = lambda: gpu
    for variant in importlib.import_module(f"octavo.ops.cuda.{kernels}").variants():
        if only not in ("", variant.name) or not exists(variant, gpu):
            continue
        variant = dataclasses.replace(variant, constants=variant.constants | constants)
        found = {"name": variant.name, "gpu": gpu, "error": None}
        try:
            found |= dataclasses.asdict(compile_variant(variant, gpu))
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {error}"
        narrow = any(kind in ("*bf16", "*fp16") for kind in variant.signature.values())
        print(json.dumps(found | {"tensor_cores": narrow and has_product(variant.kernel, set())}), flush=True)
'''

HOPPER, ADA = (9, 0), (8, 9)
OTHERS = [(8, 0), (10, 0), (12, 0)]
"""Ampere and Blackwell: for them no more is compiled than the kernel whose tiles differ from GPU to GPU."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What has been compiled here; nothing before."""
    return tmp_path_factory.mktemp("triton")


def compiled(kernels: str, gpus: list[tuple[int, int]], cache: Path, only: str = "", **constants: Any) -> list[dict[str, Any]]:
    """What the compiler says of the forms of a kernel file, or of one of them, with some constants changed.

    Args:
        gpus: the compute capabilities to compile for.
    """
    surroundings = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", COMPILE, json.dumps([kernels, gpus, only, constants])]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def wrong(found: dict[str, Any]) -> list[str]:
    """What is wrong with a form, in words that name it and the GPU."""
    major, minor = found["gpu"]
    name, room = f"{found['name']} for {major}.{minor}", SHARED_BYTES[major, minor]
    if found["error"] is not None:
        return [f"{name} does not compile: {found['error']}"]
    faults = []
    if found["shared"] > room:
        faults.append(f"{name} takes {found['shared']} bytes of shared memory, of which there are {room}")
    if found["spilled"] > SPILLED_BYTES:
        faults.append(f"{name} spills {found['spilled']} bytes a thread")
    if found["tensor_cores"] and not found["matrix_instructions"]:
        faults.append(f"{name} multiplies without the tensor cores")
    return faults


@pytest.mark.parametrize("kernels", KERNEL_FILES)
def test_forms_compile(kernels: str, cache: Path) -> None:
    found = compiled(kernels, [HOPPER, ADA, *(OTHERS if kernels == "attention_prefill" else [])], cache)
    assert found, f"{kernels} lists no form"
    assert [fault for form in found for fault in wrong(form)] == []


def test_attention_uses_the_tensor_cores(cache: Path) -> None:
    """The question above is asked of it: what looks for products finds those in functions that a kernel calls."""
    found = {form["name"]: form["tensor_cores"] for form in compiled("attention_prefill", [HOPPER], cache)}
    assert found["prefill_llama3"]
    assert not found["prefill_float32"]


def test_a_form_that_does_not_fit_is_named(cache: Path) -> None:
    found = compiled("attention_prefill", [HOPPER], cache, "prefill_llama3", KEYS=256)
    faults = [fault for form in found for fault in wrong(form)]
    assert any(fault.startswith("prefill_llama3 for 9.0 takes") for fault in faults)
    assert any(fault.startswith("prefill_llama3 for 9.0 spills") for fault in faults)


def test_every_file_with_forms_is_listed_and_names_are_unique() -> None:
    folder = Path(octavo.ops.cuda.__path__[0])
    assert sorted(KERNEL_FILES) == sorted(path.stem for path in folder.glob("*.py") if "def variants(" in path.read_text())
    assert [name for name, count in Counter(variant.name for variant in all_variants()).items() if count > 1] == []
