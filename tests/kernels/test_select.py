"""Which kernels stand behind the interface, by the environment and the options."""

from __future__ import annotations

import pytest
import torch

from octavo.errors import ConfigError
from octavo.ops import _cpu
from octavo.ops._cpu import kernel_sets
from octavo.ops.cpu.backend import WIDE_KERNELS, CpuOps
from octavo.ops.reference import ReferenceOps
from octavo.ops.select import select_ops

CPU = torch.device("cpu")


def test_the_best_set_runs_unless_another_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ["", *kernel_sets()]:
        monkeypatch.setenv("OCTAVO_CPU_KERNELS", name)
        ops = select_ops(CPU, torch.bfloat16)
        assert isinstance(ops, CpuOps)
        assert ops.kernels == (name or kernel_sets()[0])
        assert ops.wide_activations == (ops.kernels == WIDE_KERNELS)
    monkeypatch.setenv("OCTAVO_CPU_KERNELS", "reference")
    assert isinstance(select_ops(CPU, torch.bfloat16), ReferenceOps)
    monkeypatch.setenv("OCTAVO_CPU_KERNELS", "mmx")
    with pytest.raises(ConfigError, match=r"'mmx' is not one of .*scalar and reference"):
        select_ops(CPU, torch.bfloat16)


def test_rows_of_8_bits_can_be_had_from_any_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in kernel_sets():
        monkeypatch.setenv("OCTAVO_CPU_KERNELS", name)
        ops = select_ops(CPU, torch.bfloat16, 8)
        assert isinstance(ops, CpuOps) and not ops.wide_activations


def test_rows_of_16_bits_need_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in kernel_sets():
        monkeypatch.setenv("OCTAVO_CPU_KERNELS", name)
        if name == WIDE_KERNELS:
            ops = select_ops(CPU, torch.bfloat16, 16)
            assert isinstance(ops, CpuOps) and ops.wide_activations
            continue
        with pytest.raises(ConfigError, match=f"activation_bits=16 needs AMX .*{name}"):
            select_ops(CPU, torch.bfloat16, 16)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_reference_has_none_of_either(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    monkeypatch.setenv("OCTAVO_CPU_KERNELS", "reference")
    with pytest.raises(ConfigError, match=f"activation_bits={bits} needs the C"):
        select_ops(CPU, torch.bfloat16, bits)


def test_other_kernels_take_no_weights_laid_out_for_amx() -> None:
    program = _cpu.Program(_cpu.Team(1), "scalar", 1)
    for name in ("u4_table", "u4_table_min", "u8_wide"):
        with pytest.raises(ValueError, match="only the kernels for AMX"):
            program.linear(0, 0, 0, 0.0, False, _cpu.PackedWeight(name, 1, 32), "", False, 0, 0, 0.0)
