"""The GPU kernels, in Triton, behind the ``Ops`` interface."""

LEAST_CAPABILITY = (8, 0)
"""Compute capability of the oldest GPUs that the kernels run on: Ampere's, the first with bfloat16."""

FLOAT8_CAPABILITY = (8, 9)
"""Of the first with float8 numbers: Ada's."""
