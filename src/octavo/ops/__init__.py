"""The kernels' one interface and its backends."""
