"""Kernels for NVIDIA GPUs through numba.cuda.  Empty as yet: device "cuda" is refused."""
