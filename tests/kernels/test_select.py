"""Which kernels stand behind the interface, by the environment and the options."""

from __future__ import annotations

import pytest
import torch

from octavo.errors import ConfigError
from octavo.ops._cpu import kernel_sets
from octavo.ops.cpu.backend import LOOKUP_KERNELS, CpuOps
from octavo.ops.reference import ReferenceOps
from octavo.ops.select import select_ops

CPU = torch.device("cpu")


def test_the_best_set_runs_unless_another_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ["", *kernel_sets()]:
        monkeypatch.setenv("OCTAVO_CPU_KERNELS", name)
        ops = select_ops(CPU, torch.bfloat16)
        assert isinstance(ops, CpuOps)
        assert ops.kernels == (name or kernel_sets()[0])
        assert ops.looks_up == (ops.kernels == LOOKUP_KERNELS)
    monkeypatch.setenv("OCTAVO_CPU_KERNELS", "reference")
    assert isinstance(select_ops(CPU, torch.bfloat16), ReferenceOps)
    monkeypatch.setenv("OCTAVO_CPU_KERNELS", "mmx")
    with pytest.raises(ConfigError, match=r"'mmx' is not one of .*scalar and reference"):
        select_ops(CPU, torch.bfloat16)


def test_rows_of_int8_can_be_had_from_any_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in kernel_sets():
        monkeypatch.setenv("OCTAVO_CPU_KERNELS", name)
        ops = select_ops(CPU, torch.bfloat16, "int8")
        assert isinstance(ops, CpuOps) and not ops.looks_up


def test_rows_of_bfloat16_need_kernels_that_look_weights_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in kernel_sets():
        monkeypatch.setenv("OCTAVO_CPU_KERNELS", name)
        if name == LOOKUP_KERNELS:
            ops = select_ops(CPU, torch.bfloat16, "bfloat16")
            assert isinstance(ops, CpuOps) and ops.looks_up
            continue
        with pytest.raises(ConfigError, match=f"activations=bfloat16 needs AMX .*{name}"):
            select_ops(CPU, torch.bfloat16, "bfloat16")


@pytest.mark.parametrize("activations", ["int8", "bfloat16"])
def test_the_reference_has_none_of_either(monkeypatch: pytest.MonkeyPatch, activations: str) -> None:
    monkeypatch.setenv("OCTAVO_CPU_KERNELS", "reference")
    with pytest.raises(ConfigError, match=f"activations={activations} needs the C"):
        select_ops(CPU, torch.bfloat16, activations)


def test_other_kernels_take_no_weights_for_lookups() -> None:
    from octavo.ops import _cpu

    program = _cpu.Program(_cpu.Team(1), "scalar", 1)
    weight = _cpu.PackedWeight("u4_table", 1, 32)
    with pytest.raises(ValueError, match="looked-up"):
        program.linear(0, 0, 0, 0.0, False, weight, "", False, 0, 0, 0.0)
