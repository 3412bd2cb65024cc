"""Kernels for the processor.  Empty as yet: device "cpu" runs the definition (reference.py)."""
