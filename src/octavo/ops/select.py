"""Which backend runs on a device."""

from __future__ import annotations

import torch

from octavo import env
from octavo.errors import ConfigError
from octavo.ops.base import Group, Ops

REFERENCE = "reference"


def select_ops(
    device: torch.device,
    dtype: torch.dtype,
    activation_bits: int | None = None,
    *,
    graphs: bool = True,
    group: Group | None = None,
    attention: str = "triton",
) -> Ops:
    """The kernels for a device and a compute type.

    A CPU runs float32 and bfloat16 on the C++ kernels of the best instruction set it has, on as many threads as torch is set to use;
    ``$OCTAVO_CPU_KERNELS`` names another set, and float16 runs on the reference. A GPU runs Triton kernels.

    Args:
        device: where weights and activations live.
        dtype: float32, bfloat16 or float16.
        activation_bits: what rows keep where they meet quantised weights: 8 or 16, or None for the most that the kernels do.
        graphs: whether a GPU's decoding steps may be captured as graphs.
        group: the ranks that share each layer.
        attention: who attends on a GPU; see ``CudaOps``.

    Raises:
        ConfigError: ``$OCTAVO_CPU_KERNELS`` names kernels that there are not here, the activations' bits need others, or the library
            that is to attend is not there.
    """
    if device.type == "cuda":
        from octavo.ops.cuda.backend import CudaOps

        if activation_bits is not None:
            raise ConfigError(f"activation_bits={activation_bits} needs the C++ kernels of a CPU.")
        return CudaOps(device, dtype, graphs, group, attention)
    wanted = env.cpu_kernels()
    if dtype == torch.float16 or wanted == REFERENCE:
        from octavo.ops.reference import ReferenceOps

        if activation_bits is not None:
            raise ConfigError(f"activation_bits={activation_bits} needs the C++ kernels of a CPU.")
        return ReferenceOps(device, dtype, group)
    from octavo.ops._cpu import kernel_sets
    from octavo.ops.cpu.backend import WIDE_KERNELS, CpuOps

    if wanted and wanted not in kernel_sets():
        raise ConfigError(f"OCTAVO_CPU_KERNELS={wanted!r} is not one of {', '.join(kernel_sets())} and {REFERENCE}, which run here.")
    if activation_bits == 16 and (wanted or kernel_sets()[0]) != WIDE_KERNELS:
        raise ConfigError(f"activation_bits=16 needs AMX and its kernels; {wanted or kernel_sets()[0]} are the ones that would run.")
    return CpuOps(dtype, torch.get_num_threads(), wanted, activation_bits, group)
