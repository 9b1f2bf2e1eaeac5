"""The GPU kernels, in Triton, behind the ``Ops`` interface."""
