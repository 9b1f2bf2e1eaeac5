"""The CPU backend: C++ kernels (``csrc/cpu``), and a model's forward pass recorded once and replayed without Python."""
