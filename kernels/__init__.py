"""Kernels: the mathematics of BERT, in three rooms with the same names in each.

    reference.py   NumPy, the definition: read this one first
    cpu/           for the processor
    cuda/          for NVIDIA GPUs
    backend.py     the table that says which functions a device runs

Import this package as `minibert.kernels`.  The folder lies at the top of the repository and
pyproject.toml maps it there.
"""

# For whoever finds this folder as top-level `kernels` because the repository root is on
# sys.path: transformers looks for Hugging Face's package of that name and reads its version.
__version__ = "0.0.0"
